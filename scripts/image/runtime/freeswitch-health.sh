#!/bin/sh
# freeswitch-health.sh: ask FreeSWITCH over its event socket whether it is ready
# and its SIP profiles run, whether its database has room, and ask each profile over
# SIP. Prints what it says; status 0 if all is well.
set -eu

# Send an OPTIONS and wait for an answer, whatever it is: ADDRESS PORT udp|tcp|tls
ask() {
	# shellcheck disable=SC2016 # That is for the inner shell.
	timeout 4 bash -c '
		set -eu
		name=health$$$RANDOM
		host=$1
		case $host in *:*) host="[$host]" ;; esac
		if [ "$3" = tls ]; then
			# Whose certificate it is does not matter here.
			coproc openssl s_client -quiet -connect "$host:$2"
			trap "kill $COPROC_PID || true" EXIT
			exec 3<&"${COPROC[0]}" 4>&"${COPROC[1]}"
		else
			exec 3<>"/dev/$3/$1/$2" 4>&3
		fi
		# Of coreutils: it writes all at once, as a datagram.
		env printf "%s\r\n" "OPTIONS sip:$host SIP/2.0" "Via: SIP/2.0/${3^^} $host;branch=z9hG4bK$name;rport" \
			"Max-Forwards: 70" "From: <sip:health@$host>;tag=$name" "To: <sip:$host>" "Call-ID: $name" \
			"CSeq: 1 OPTIONS" "Content-Length: 0" "" >&4
		[ "$(head -c 8 <&3)" = "SIP/2.0 " ]' ask "$@" 2>/dev/null
}

# Ask the profile $1 where it listens: sip:NAME@HOST:PORT;maddr=ADDRESS;transport=udp,tcp
ask_profile() {
	url=$(fs_cli -T 2000 -t 4000 -x "sofia status profile $1" |
		awk '$1 == "BIND-URL" { plain = $2 } $1 == "TLS-BIND-URL" { tls = $2 } END { print plain ? plain : tls }')
	where=${url#*@} where=${where%%;*}
	host=${where%:*} port=${where##*:}
	case $url in *";maddr="*) host=${url#*;maddr=} host=${host%%;*} ;; esac
	host=${host#"["} host=${host%"]"}
	case $url in
	*transport=*udp*) ask "$host" "$port" udp ;;
	*transport=*tcp*) ask "$host" "$port" tcp ;;
	# Who wants a certificate of the clients has none for this one.
	*transport=*tls*) [ -n "${TLS_CLIENT_CA_FILE-}" ] || ask "$host" "$port" tls ;;
	esac
}

status=$(fs_cli -T 2000 -t 4000 -x status)
case $status in
*"is ready"*) ;;
*)
	echo "not ready: $status"
	exit 1
	;;
esac

# With a full disk nobody can register: the nonces are in the database.
file=/var/lib/freeswitch/db/.room
if ! head -c 16384 /dev/zero 2>/dev/null > "$file"; then
	rm -f "$file"
	echo "no room in ${file%/*}"
	exit 1
fi
rm -f "$file"

# A table: name, type, data, state
profiles=$(fs_cli -T 2000 -t 4000 -x 'sofia status')
echo "$profiles" | awk -F '\t' '
	$2 ~ /^ *profile$/ { if ($4 ~ /^RUNNING/) running++; else { print "SIP profile" $1 " is " $4; bad = 1 } }
	END { if (!running) print "no SIP profile runs"; exit bad || !running }'

# The event socket answers also when the thread of a profile stands still.
for name in $(echo "$profiles" | awk -F '\t' '$2 ~ /^ *profile$/ { print $1 }' | sort -u); do
	ask_profile "$name" || {
		echo "SIP profile $name doesn't answer"
		exit 1
	}
done
echo ready
