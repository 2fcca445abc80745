#!/bin/sh
# freeswitch-entrypoint.sh [OPTION... | check | COMMAND...]: check the settings in
# the environment and start FreeSWITCH in the foreground, with OPTIONs if given.
#   check    only check them
#   COMMAND  run it instead (sh, say)
#
# share/variables lists the variables, NAME|KIND|DEFAULT a line. Of each there is
# also NAME_FILE, if it is a secret: a file that has the value. A wrong value
# ends it with one line on stderr and status 78, before anything is started.
# shellcheck disable=SC2329 # load_variables calls the checks by their kind.
set -eu

# First of all: the kernel keeps from a container's first process what it has no trap for.
trap 'exit 143' TERM INT

share=/usr/local/share/freeswitch
modules=/usr/local/freeswitch/mod
etc=/etc/freeswitch
configuration=$etc/autoload_configs
run=/run/freeswitch
lib=/var/lib/freeswitch

fail() {
	printf 'freeswitch-entrypoint: %s' "$1" | tr '\n' ' ' >&2
	echo >&2
	exit 78
}

warn() {
	echo "freeswitch-entrypoint: warning: $1" >&2
}

# The checks take a name and a value, and further arguments of the kind. They
# never let through what would mean something in XML or to FreeSWITCH.

# $3 characters, as in a bracket expression
check_characters() {
	case $2 in
	*[!$3]*) fail "$1='$2' must be made of the characters $3: correct it" ;;
	esac
}

check_boolean() {
	case $2 in
	true | false) ;;
	*) fail "$1='$2' must be true or false" ;;
	esac
}

# $3 lowest, $4 highest, $5 what else it may be
check_integer() {
	case $2 in
	0?* | *[!0-9]* | ??????????*) fail "$1='$2' must be ${5:+$5 or }a whole number from $3 to $4" ;;
	esac
	[ "$2" -ge "$3" ] && [ "$2" -le "$4" ] || fail "$1='$2' must be ${5:+$5 or }a whole number from $3 to $4"
}

check_port() {
	case $2 in
	0* | *[!0-9]* | ??????*) fail "$1='$2' is not a port: give a number from 1 to 65535" ;;
	esac
	[ "$2" -le 65535 ] || fail "$1='$2' is not a port: give a number from 1 to 65535"
}

check_timeout() {
	[ "$2" = 0 ] || check_integer "$1" "$2" 2 32767 0
}

# Whether $1 is an IPv4 address
is_ipv4() {
	case $1 in
	*[!0-9.]* | *..* | .* | *.) return 1 ;;
	esac
	(
		IFS=.
		# shellcheck disable=SC2086 # It is to be split.
		set -- $1
		[ $# -eq 4 ] || exit 1
		for part; do
			case $part in ????* | 0?*) exit 1 ;; esac
			[ "$part" -le 255 ] || exit 1
		done
	)
}

# Whether $1 is an IPv6 address
is_ipv6() {
	case $1 in
	*[!0-9a-fA-F:]* | *:::* | *::*::* | *[0-9a-fA-F][0-9a-fA-F][0-9a-fA-F][0-9a-fA-F][0-9a-fA-F]*) return 1 ;;
	:[!:]* | *[!:]: | *:*:*:*:*:*:*:*:*:*) return 1 ;;
	# Eight colons are right where two of them begin or end it.
	::* | *::) return 0 ;;
	*:*:*:*:*:*:*:*:*) return 1 ;;
	*::* | *:*:*:*:*:*:*:*) return 0 ;;
	esac
	return 1
}

check_address() {
	is_ipv4 "$2" || is_ipv6 "$2" || fail "$1='$2' is not an IP address: give one like 192.0.2.10 or 2001:db8::10"
}

check_auto_or_address() {
	[ "$2" = auto ] || is_ipv4 "$2" || is_ipv6 "$2" ||
		fail "$1='$2' is not an IP address: give one of this machine, or auto"
	case $2 in
	0.0.0.0 | ::) fail "$1='$2': SIP needs the address that clients are told: give one of this machine, or auto" ;;
	esac
}

# Items with commas between
check_items() {
	case $2 in
	*[!0-9a-zA-Z:./,@+_-]* | *,,* | ,* | *,) fail "$1='$2' is not a list: give items with commas between, without spaces" ;;
	esac
}

# Print the items of the list $1
items() {
	echo "$1" | tr , ' '
}

# Without a length it is one address
check_networks() {
	check_items "$1" "$2"
	for network in $(items "$2"); do
		address=${network%/*} length=${network##*/}
		if [ "$length" = "$network" ]; then
			length=0
		fi
		if is_ipv4 "$address"; then
			most=32
		elif is_ipv6 "$address"; then
			most=128
		else
			fail "$1='$2': '$network' is not a network: give ones like 192.0.2.0/24, with commas between"
		fi
		case $length in
		"" | *[!0-9]* | ????*) fail "$1='$2': '/$length' is not the length of a network: give a number up to $most" ;;
		esac
		[ "$length" -le "$most" ] || fail "$1='$2': '/$length' is not the length of a network: give a number up to $most"
	done
}

# $3... what may be in the list
check_list() {
	check_items "$1" "$2"
	name=$1 list=$2
	shift 2
	for item in $(items "$list"); do
		case " $* " in
		*" $item "*) ;;
		*) fail "$name='$list': there is no '$item': use $(echo "$*" | sed 's/ /, /g')" ;;
		esac
	done
}

# $3... what it may be
check_choice() {
	name=$1 choice=$2
	shift 2
	case " $* " in
	*" $choice "*) ;;
	*) fail "$name='$choice' is none of $(echo "$*" | sed 's/ /, /g'): use one of them" ;;
	esac
}

check_codecs() {
	check_items "$1" "$2"
	for codec in $(items "$2"); do
		grep -qixF -- "${codec%%@*}" "$share/codecs" ||
			fail "$1='$2': the image has no codec '${codec%%@*}': use $(paste -sd, "$share/codecs" | sed 's/,/, /g')"
		case $codec in
		*@*) echo "${codec#*@}" | grep -qE '^[0-9]+[hibck](@[0-9]+[hibck])*$' ||
			fail "$1='$2': '@${codec#*@}' is no parameter of a codec: give ones like @16000h@20i" ;;
		esac
	done
}

check_modules() {
	check_items "$1" "$2"
	for module in $(items "$2"); do
		case $module in
		mod_*[!a-z0-9_]* | [!m]*) fail "$1='$2': '$module' is not a module: give names like mod_amqp" ;;
		esac
		[ -e "$modules/$module.so" ] || fail "$1='$2': the image has no $module: use a module set that has it"
	done
}

check_name() {
	check_characters "$1" "$2" 0-9a-zA-Z:._-
}

check_word() {
	check_characters "$1" "$2" 0-9a-zA-Z@._~-
}

check_path() {
	check_characters "$1" "$2" 0-9a-zA-Z/@._+-
	case $2 in
	/*) ;;
	*) fail "$1='$2' is not an absolute path: begin it with /" ;;
	esac
}

check_url() {
	check_characters "$1" "$2" "0-9a-zA-Z/:?=%@.,_~+-"
	case $2 in
	http://*@* | https://*@*) fail "$1 has a user in it: give it as ${1%_URL}_USER and ${1%_URL}_PASSWORD" ;;
	http://?* | https://?*) ;;
	*) fail "$1='$2' is not an address: begin it with https:// or http://" ;;
	esac
}

# Never shown, so it has messages of its own
check_secret() {
	case $2 in
	*[!0-9a-zA-Z._~-]*) fail "$1 must be made of the characters 0-9a-zA-Z._~- : choose another" ;;
	ClueCon) fail "$1 is the well-known one: choose another" ;;
	esac
}

# $1 name, $2 file: read a secret into the variable NAME
read_secret() {
	eval "given=\${$1-}"
	# shellcheck disable=SC2154 # eval sets it.
	[ -z "$given" ] || fail "$1 and ${1}_FILE are both given: give one of them"
	[ -f "$2" ] && [ -r "$2" ] || fail "${1}_FILE='$2' is not a file that user $(id -u) can read: mount it, or mend its mode"
	secret=$(cat -- "$2")
	[ -n "$secret" ] || fail "${1}_FILE='$2' is empty: write the value into it"
	eval "$1=\$secret"
}

load_variables() {
	known=
	# shellcheck disable=SC2034 # eval reads the default.
	while IFS='|' read -r name kind default; do
		known="$known $name "
		if [ "$kind" = secret ]; then
			known="$known ${name}_FILE "
			eval "file=\${${name}_FILE-}"
			# shellcheck disable=SC2154
			[ -z "$file" ] || read_secret "$name" "$file"
		fi
		eval "value=\${$name-}"
		# shellcheck disable=SC2154
		if [ -n "$value" ]; then
			arguments=${kind#* }
			[ "$arguments" != "$kind" ] || arguments=
			# shellcheck disable=SC2086 # It is to be split.
			"check_$(echo "${kind%% *}" | tr - _)" "$name" "$value" $arguments
		else
			eval "$name=\$default"
		fi
		# shellcheck disable=SC2163 # The variable of that name.
		export "$name"
	done < "$share/variables"
}

# What is allowed, and probably not meant
give_warnings() {
	# By the first words of the variables there are, with an S or without: REQUEST_PER_SECOND is meant for one, too.
	families=$(echo "$known" | tr ' ' '\n' | sed -n 's/S\{0,1\}_.*//p' | sort -u | paste -sd '|')
	for name in $(env | sed -nE "s/^(($families)S?_[A-Z0-9_]*)=.*/\1/p"); do
		case $known in
		*" $name "*) ;;
		*) warn "$name is not one of the variables of this image" ;;
		esac
	done
	set -- "$etc"/directory/*.xml
	[ -n "$DIRECTORY_URL" ] || [ -e "$1" ] ||
		warn "there are no users: mount them to /etc/freeswitch/directory, or set DIRECTORY_URL"
	[ -z "$TLS_CLIENT_CA_FILE" ] || ! listens wss ||
		warn "TLS_CLIENT_CA_FILE='$TLS_CLIENT_CA_FILE' does not hold for WSS: its clients need no certificate"
	if listens tls || listens wss; then
		openssl x509 -in "$TLS_CERT_FILE" -noout -checkend 0 >/dev/null ||
			warn "the certificate in TLS_CERT_FILE='$TLS_CERT_FILE' has expired: renew it"
	fi
}

# Whether SIP_TRANSPORTS names $1
listens() {
	case ,$SIP_TRANSPORTS, in *",$1,"*) return 0 ;; esac
	return 1
}

# What a variable means together with others

check_ports() {
	used=
	for item in "udp tcp:SIP_PORT:$SIP_PORT" "tls:SIP_TLS_PORT:$SIP_TLS_PORT" "ws:SIP_WS_PORT:$SIP_WS_PORT" \
		"wss:SIP_WSS_PORT:$SIP_WSS_PORT" ":ESL_PORT:$ESL_PORT"; do
		transports=${item%%:*} port=${item##*:} name=${item#*:} wanted=
		name=${name%:*}
		for transport in $transports; do
			! listens "$transport" || wanted=yes
		done
		[ -n "$wanted$([ -n "$transports" ] || echo yes)" ] || continue
		case $used in
		*" $port="*)
			other=${used##* "$port"=}
			fail "$name='$port' is ${other%% *} as well: give each transport and the event socket a port of its own"
			;;
		esac
		used="$used $port=$name "
	done
	[ "$RTP_END_PORT" -ge $((RTP_START_PORT + 3)) ] ||
		fail "RTP_END_PORT='$RTP_END_PORT' must be at least 3 more than RTP_START_PORT='$RTP_START_PORT'"
	if listens udp && [ "$SIP_PORT" -ge "$RTP_START_PORT" ] && [ "$SIP_PORT" -le "$RTP_END_PORT" ]; then
		fail "SIP_PORT='$SIP_PORT' is among the ports for media: move RTP_START_PORT or RTP_END_PORT"
	fi
}

family() {
	case $1 in
	*:*) echo IPv6 ;;
	*) echo IPv4 ;;
	esac
}

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

# $1 address that SIP listens on
check_external() {
	[ -z "$SIP_EXTERNAL_IP" ] || [ "$(family "$SIP_EXTERNAL_IP")" = "$(family "$1")" ] ||
		fail "SIP_EXTERNAL_IP='$SIP_EXTERNAL_IP' is $(family "$SIP_EXTERNAL_IP"), and SIP listens on $1: give one of the same kind"
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

check_event_socket() {
	case $ESL_LISTEN_IP in
	127.* | ::1) ;;
	*)
		[ -n "$ESL_PASSWORD" ] ||
			fail "ESL_LISTEN_IP='$ESL_LISTEN_IP' opens the event socket, and ESL_PASSWORD is empty: give one"
		[ -n "$ESL_ACL" ] ||
			fail "ESL_LISTEN_IP='$ESL_LISTEN_IP' opens the event socket, and ESL_ACL is empty: name the networks that may connect"
		;;
	esac
}

check_directory() {
	if [ -z "$DIRECTORY_URL" ]; then
		[ -z "$DIRECTORY_USER$DIRECTORY_PASSWORD" ] ||
			fail "DIRECTORY_USER or DIRECTORY_PASSWORD is given without DIRECTORY_URL: give the address, too"
		return
	fi
	[ -e "$modules/mod_xml_curl.so" ] || fail "DIRECTORY_URL='$DIRECTORY_URL': the image has no mod_xml_curl: build it in"
	[ -n "$DIRECTORY_USER" ] || [ -z "$DIRECTORY_PASSWORD" ] ||
		fail "DIRECTORY_PASSWORD is given without DIRECTORY_USER: give both or none"
	case $DIRECTORY_URL in
	https://*) readable DIRECTORY_CA_FILE "$DIRECTORY_CA_FILE" ;;
	esac
}

# Modules that don't work without a configuration, of which the image has none
check_configurations() {
	for module in $(items "$LOAD_MODULES"); do
		case $module in
		mod_amqp | mod_hiredis | mod_httapi | mod_json_cdr | mod_local_stream | mod_skinny | mod_xml_cdr | \
			mod_xml_rpc | mod_xml_scgi) ;;
		*) continue ;;
		esac
		name=${module#mod_}.conf
		grep -qs "<configuration[^>]*name=[\"']${name}[\"']" "$configuration"/*.xml ||
			fail "LOAD_MODULES='$LOAD_MODULES': $module needs a configuration: mount $configuration/$name.xml"
	done
}

# The files that FreeSWITCH makes one document of. It passes over a line with
# <include> and whatever else is on it, and where the document ends too early it
# does without the rest; of other faults it tells the line in the document.
check_files() {
	for directory in "$etc/directory" "$etc/dialplan" "$configuration"; do
		[ ! -e "$directory" ] || { [ -r "$directory" ] && [ -x "$directory" ]; } ||
			fail "$directory is not readable for user $(id -u): mend its owner or mode"
	done
	set -- "$etc"/directory/*.xml "$etc"/dialplan/*.xml "$configuration"/*.xml
	for file; do
		[ ! -e "$file" ] || [ -r "$file" ] || fail "$file is not readable for user $(id -u): mend its owner or mode"
	done
	# shellcheck disable=SC2016 # The variables are awk's.
	lost=$(list "$@" | xargs -r -d '\n' awk '
		function check_end() {
			if (text && text !~ />[ \t\r]*$/) { print file ": line " line ": it ends in the middle of a tag: complete it" }
			text = ""
		}
		FNR == 1 { check_end(); file = FILENAME }
		/[^ \t\r]/ { text = $0; line = FNR }
		/<\/?include>|<\?/ {
			gsub(/<!--.*-->|<\/?include>|<\?[^?]*\?>/, "")
			if (/[^ \t\r]/) {
				print FILENAME ": line " FNR ": FreeSWITCH passes over a line with <include>, </include> or <?: " \
					"give that a line of its own"
			}
		}
		END { check_end() }' 2>/dev/null | head -n 1)
	[ -z "$lost" ] || fail "$lost"
	[ -n "$(list "$@" | xml_faults)" ] || return 0
	for file; do
		fault=$(list "$file" | xml_faults)
		case $fault in
		# Of what is no XML either, FreeSWITCH is content with much: characters, encodings, comments.
		*"mismatched tag" | *"unclosed token" | *"unclosed CDATA section")
			fail "$file: line $(echo "$fault" | cut -d: -f2): ${fault##*: }: correct the XML"
			;;
		esac
	done
}

# Print those of the files that are there
list() {
	for file; do
		[ ! -e "$file" ] || echo "$file"
	done
}

# Print where the files that standard input names cease to be XML, with any number
# of roots each. xmlwf reads no further, of which its writers would complain.
xml_faults() {
	{
		printf '<files>'
		xargs -r -d '\n' awk '
			FNR == 1 { printf "%s<file>", first++ ? "</file>" : "" }
			{ gsub(/<\?[^?]*\?>/, ""); gsub(/&/, "+"); print }
			END { if (first) printf "</file>" }'
		printf '</files>'
	} 2>/dev/null | xmlwf -e ISO-8859-1 || true
}

# $1 name, $2 file
readable() {
	[ -f "$2" ] || fail "$1='$2': there is no such file: mount it, or name another"
	[ -r "$2" ] || fail "$1='$2' is not readable for user $(id -u): mend its owner or mode"
}

check_certificates() {
	readable TLS_CERT_FILE "$TLS_CERT_FILE"
	readable TLS_KEY_FILE "$TLS_KEY_FILE"
	certified=$(openssl x509 -in "$TLS_CERT_FILE" -noout -pubkey 2>/dev/null) ||
		fail "TLS_CERT_FILE='$TLS_CERT_FILE' has no certificate in PEM: convert it, or name another"
	key=$(openssl pkey -in "$TLS_KEY_FILE" -passin pass: -pubout 2>/dev/null) ||
		fail "TLS_KEY_FILE='$TLS_KEY_FILE' has no key in PEM without a passphrase: convert it, or name another"
	[ "$certified" = "$key" ] ||
		fail "TLS_KEY_FILE='$TLS_KEY_FILE' is not the key of the first certificate in TLS_CERT_FILE='$TLS_CERT_FILE': name the right one"
	if [ -n "$TLS_CLIENT_CA_FILE" ]; then
		readable TLS_CLIENT_CA_FILE "$TLS_CLIENT_CA_FILE"
		openssl x509 -in "$TLS_CLIENT_CA_FILE" -noout 2>/dev/null ||
			fail "TLS_CLIENT_CA_FILE='$TLS_CLIENT_CA_FILE' has no certificate in PEM: convert it, or name another"
	fi
}

check_directories() {
	for directory in "$run" /tmp "$lib/db" "$lib/recordings" "$lib/storage" "$lib/cache" /var/log/freeswitch; do
		mkdir -p "$directory" 2>/dev/null && [ -w "$directory" ] ||
			fail "$directory is not writable for user $(id -u): mount a volume that it owns, or a tmpfs"
	done
}

# What FreeSWITCH reads at the start and what holds for this container only

write_certificates() {
	mkdir -p "$run/tls"
	if listens tls || listens wss; then
		# The stack wants certificate and key in one file.
		for file in agent.pem wss.pem; do
			{ cat -- "$TLS_CERT_FILE" && echo && cat -- "$TLS_KEY_FILE"; } > "$run/tls/$file"
		done
		{
			cat -- "${TLS_CLIENT_CA_FILE:-/etc/ssl/certs/ca-certificates.crt}"
			write_chain
		} > "$run/tls/cafile.pem"
	fi
}

# Print the intermediate certificates of TLS_CERT_FILE. The stack sends its own
# certificate only; what issued that, OpenSSL adds if it finds it among the
# authorities. One that has issued itself would be an authority there.
write_chain() {
	rm -f "$run"/tls/chain.*
	awk -v name="$run/tls/chain" '/-----BEGIN CERTIFICATE-----/ { n++ } n > 1 { print > (name "." n) }' "$TLS_CERT_FILE"
	for file in "$run"/tls/chain.*; do
		[ -e "$file" ] || continue
		[ "$(openssl x509 -in "$file" -noout -subject_hash)" = "$(openssl x509 -in "$file" -noout -issuer_hash)" ] ||
			openssl x509 -in "$file"
		rm -f "$file"
	done
}

write_modules() {
	[ -z "$DIRECTORY_URL" ] || LOAD_MODULES=mod_xml_curl${LOAD_MODULES:+,$LOAD_MODULES}
	echo '<include>'
	for module in $(echo "$LOAD_MODULES" | tr , '\n' | sort -u); do
		echo "<load module=\"$module\"/>"
	done
	echo '</include>'
}

# For fs_cli, which finds it by way of /etc/fs_cli.conf
write_client() {
	case $ESL_LISTEN_IP in
	0.0.0.0) host=127.0.0.1 ;;
	::) host=::1 ;;
	*) host=$ESL_LISTEN_IP ;;
	esac
	printf '[default]\nhost => %s\nport => %s\npassword => %s\n' "$host" "$ESL_PORT" "$ESL_PASSWORD"
}

derive() {
	if [ -z "$ESL_PASSWORD" ]; then
		ESL_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
	fi
	acl=127.0.0.0/8,::1/128
	case $ESL_LISTEN_IP in
	127.* | ::1 | 0.0.0.0 | ::) ;;
	*) acl=$acl,$ESL_LISTEN_IP ;;
	esac
	networks=
	for network in $(items "$acl${ESL_ACL:+,$ESL_ACL}"); do
		case $network in
		*/*) ;;
		*:*) network=$network/128 ;;
		*) network=$network/32 ;;
		esac
		networks=$networks${networks:+,}$network
	done
	ESL_ACL=$networks
	SIP_NAT=no-nat
	[ -z "$SIP_EXTERNAL_IP" ] || SIP_NAT=behind-nat
	SIP_TLS=false SIP_TLS_ONLY=false SIP_TLS_VERIFY=none SIP_WS_BINDING='' SIP_WSS_BINDING=''
	if listens udp && listens tcp; then
		SIP_BIND=udp,tcp
	elif listens udp; then
		SIP_BIND=udp
	else
		SIP_BIND=tcp
	fi
	if listens tls; then
		SIP_TLS=true
		listens udp || listens tcp || SIP_TLS_ONLY=true
		[ -z "$TLS_CLIENT_CA_FILE" ] || SIP_TLS_VERIFY=in
	fi
	! listens ws || SIP_WS_BINDING=:$SIP_WS_PORT
	! listens wss || SIP_WSS_BINDING=:$SIP_WSS_PORT
	# What is not logged by the core, nothing else can log.
	CORE_LOG_LEVEL=info
	[ "${LOG_LEVEL:?}" != debug ] || CORE_LOG_LEVEL=debug
	LOG_LEVELS=debug,info,notice,warning,err,crit,alert
	LOG_LEVELS=$LOG_LEVEL${LOG_LEVELS#*"$LOG_LEVEL"}
	DIRECTORY_CREDENTIALS=
	[ -z "$DIRECTORY_USER" ] || DIRECTORY_CREDENTIALS=$DIRECTORY_USER:$DIRECTORY_PASSWORD
	export SIP_DOMAIN SIP_NAT SIP_BIND SIP_TLS SIP_TLS_ONLY SIP_TLS_VERIFY SIP_WS_BINDING SIP_WSS_BINDING
	export ESL_PASSWORD ESL_ACL DIRECTORY_CREDENTIALS LOG_LEVELS CORE_LOG_LEVEL
}

# Each connection is an open file. FreeSWITCH asks for 999999 of them, which fails
# as a whole where fewer are allowed, and leaves it with what many engines begin
# with: 1024.
# shellcheck disable=SC3045 # Debian's sh tells the two limits apart.
raise_limit() {
	most=$(ulimit -Hn)
	if [ "$most" = unlimited ] || [ "$most" -gt 999999 ]; then
		most=999999
	fi
	ulimit -Sn "$most"
	[ "$most" -ge 4096 ] ||
		warn "no more than $most files may be open, so there can't be more connections than that: raise it (docker run --ulimit nofile=65536)"
}

# Sleep, or until a signal comes
pause() {
	sleep "$1" &
	wait $! || true
}

running() {
	kill -0 "$freeswitch" 2>/dev/null
}

# Take no more calls, and wait for those there are
drain() {
	echo "freeswitch-entrypoint: taking no more calls, waiting up to $DRAIN_SECONDS s for those there are" >&2
	if fs_cli -x 'fsctl pause inbound' >/dev/null && fs_cli -x 'bgapi fsctl shutdown elegant' >/dev/null; then
		left=$DRAIN_SECONDS
		while [ "$left" -gt 0 ] && [ -n "$patient" ] && running; do
			pause 1
			left=$((left - 1))
		done
	fi
}

# SIGTERM to this shell. A second one ends the waiting.
stop() {
	signalled=yes patient=yes
	trap 'patient=' TERM INT
	# FreeSWITCH forgets a signal that comes while it starts.
	left=30
	until [ "$left" -eq 0 ] || ! running || fs_cli -T 1000 -t 2000 -x status 2>/dev/null | grep -q 'is ready'; do
		pause 1
		left=$((left - 1))
	done
	[ "$DRAIN_SECONDS" -eq 0 ] || [ -z "$patient" ] || ! running || drain
	kill -TERM "$freeswitch" 2>/dev/null || true
}

case ${1:-} in
"" | -* | check) ;;
*) exec "$@" ;;
esac

load_variables
listens udp || listens tcp || listens tls ||
	fail "SIP_TRANSPORTS='$SIP_TRANSPORTS' must have one of udp, tcp and tls in it: add one"
check_ports
[ "$SIP_LISTEN_IP" = auto ] || check_external "$SIP_LISTEN_IP"
check_event_socket
check_directory
check_configurations
check_files
if listens tls || listens wss; then
	check_certificates
fi
[ -z "$TLS_CLIENT_CA_FILE" ] || listens tls ||
	fail "TLS_CLIENT_CA_FILE='$TLS_CLIENT_CA_FILE' is for TLS: add tls to SIP_TRANSPORTS"
check_directories
give_warnings
if [ "${1:-}" = check ]; then
	check_local later
	echo "freeswitch-entrypoint: the settings are in order"
	exit
fi
choose_addresses
check_external "$sip"
check_local
check_free

derive
umask 077
write_certificates
write_modules > "$run/modules.xml"
write_client > "$run/fs_cli.conf"
echo "$ESL_PASSWORD" > "$run/esl-password"
# Logs and recordings are also for their group.
umask 027
raise_limit

set -- freeswitch -nonat -nf -nc -conf /etc/freeswitch -log /var/log/freeswitch -db "$lib/db" \
	-run "$run" -certs "$run/tls" -recordings "$lib/recordings" -storage "$lib/storage" -cache "$lib/cache" \
	-scripts /etc/freeswitch/scripts -temp /tmp "$@"
"$@" &
freeswitch=$!
signalled=yes
trap stop TERM INT
trap 'signalled=yes; kill -HUP "$freeswitch"' HUP
# A signal ends the wait, too.
while [ -n "$signalled" ]; do
	signalled='' status=0
	wait "$freeswitch" || status=$?
done
exit "$status"
