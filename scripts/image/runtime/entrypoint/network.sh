# shellcheck shell=sh
# The addresses and ports of this machine.

# Print the first address of this machine that is none of loopback, IPv4 if there is one
own_address() {
	hostname -I | tr ' ' '\n' | awk 'NF && !/:/ { print; found = 1; exit } NF && !other { other = $0 } END { if (!found) print other }'
}

# What `auto` and an empty domain stand for where there is no IPv4, or no name
choose_addresses() {
	address=$(own_address)
	case $address in
	*:*)
		[ "$SIP_LISTEN_IP" != auto ] || SIP_LISTEN_IP=$address
		[ "$ESL_LISTEN_IP" != 127.0.0.1 ] || ESL_LISTEN_IP=::1
		;;
	esac
	if [ -z "$SIP_DOMAIN" ]; then
		SIP_DOMAIN=$address
		[ "$SIP_LISTEN_IP" = auto ] || SIP_DOMAIN=$SIP_LISTEN_IP
		case $SIP_DOMAIN in
		"") fail "SIP_DOMAIN is empty, and this container has no address to take in its place: give a domain" ;;
		*:*) SIP_DOMAIN="[$SIP_DOMAIN]" ;;
		esac
	fi
	# What the checks below take for the address of SIP
	sip=$SIP_LISTEN_IP
	[ "$sip" != auto ] || sip=$address
}

# Addresses that have to be this machine's; $1: the container may get others before it starts
check_local() {
	own=$(hostname -I)
	# FreeSWITCH takes none of a kind that only loopback has.
	case $own in
	*.*:* | *:*.*) loopback="127.0.0.1 ::1" any="0.0.0.0 ::" ;;
	*:*) loopback=::1 any=:: ;;
	*) loopback=127.0.0.1 any=0.0.0.0 ;;
	esac
	for item in "SIP_LISTEN_IP:$SIP_LISTEN_IP" "ESL_LISTEN_IP:$ESL_LISTEN_IP"; do
		address=${item#*:} possible="auto $own $loopback"
		case $item in
		# Where it is none, the start takes another one.
		*:auto | ESL_LISTEN_IP:127.0.0.1) continue ;;
		ESL_*) possible="$own $loopback $any" ;;
		esac
		case $address in 127.*) address=127.0.0.1 ;; esac
		# shellcheck disable=SC2086,SC2116 # Without the spaces around.
		possible=$(echo $possible)
		case " $possible " in
		*" $address "*) continue ;;
		esac
		wrong="${item%%:*}='${item#*:}' is not an address that can be listened on here"
		[ -z "${1-}" ] || {
			warn "$wrong: right only if the container will have it (check with the same --network), else give one of $(echo "$possible" | sed 's/ /, /g')"
			continue
		}
		fail "$wrong: give one of $(echo "$possible" | sed 's/ /, /g')"
	done
}

# Print IPv4 address $1 as /proc/net/tcp has it; nothing of another one
in_hexadecimal() {
	case $1 in
	*:*) ;;
	*) echo "$1" | awk -F . '{ printf "%02X%02X%02X%02X", $4, $3, $2, $1 }' ;;
	esac
}

# Ports that somebody else listens on: FreeSWITCH would go on without them
check_free() {
	for item in "udp:udp:SIP_PORT:$SIP_PORT:$sip" "tcp:tcp:SIP_PORT:$SIP_PORT:$sip" "tls:tcp:SIP_TLS_PORT:$SIP_TLS_PORT:$sip" \
		"ws:tcp:SIP_WS_PORT:$SIP_WS_PORT:$sip" "wss:tcp:SIP_WSS_PORT:$SIP_WSS_PORT:$sip" \
		":tcp:ESL_PORT:$ESL_PORT:$ESL_LISTEN_IP"; do
		transport=${item%%:*} item=${item#*:}
		protocol=${item%%:*} item=${item#*:}
		name=${item%%:*} item=${item#*:}
		port=${item%%:*} address=${item#*:}
		[ -z "$transport" ] || listens "$transport" || continue
		# Local address and state: 0A is listening, 07 is what UDP has in its place.
		taken=$(cat "/proc/net/$protocol" "/proc/net/${protocol}6" 2>/dev/null |
			awk -v port="$(printf %04X "$port")" -v own="$(in_hexadecimal "$address")" '
				$4 == "0A" || $4 == "07" {
					split($2, place, ":")
					if (place[2] == port && (place[1] == own || place[1] ~ /^0+$/)) { print "yes"; exit }
				}')
		[ -z "$taken" ] || fail "$name='$port': another program listens on that port already: stop it, or give another port"
	done
}
