#!/bin/sh
# Start FreeSWITCH in the foreground with the settings of the environment:
#   ESL_LISTEN_IP  address of the event socket (127.0.0.1)
#   ESL_PORT       its port (8021)
#   ESL_ACL        networks that may connect to it, a,b/24,... (loopback only)
#   ESL_PASSWORD   its password (generated, see /var/run/freeswitch/esl-password)
#   SIP_DOMAIN     domain of the users (the container's address)
set -eu

fail() {
	echo "freeswitch-entrypoint: $1" >&2
	exit 78
}

# $1 name, $2 value, $3 characters that may be in it: the values end up in XML
check() {
	case $2 in
	"" | *[!$3]*) fail "$1='$2' must be made of the characters $3" ;;
	esac
}

run=/var/run/freeswitch

if [ -z "${ESL_PASSWORD:-}" ]; then
	ESL_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
fi
: "${ESL_LISTEN_IP:=127.0.0.1}" "${ESL_PORT:=8021}" "${ESL_ACL:=loopback.auto}"
: "${SIP_DOMAIN:=$(hostname -i | cut -d' ' -f1)}"

check ESL_LISTEN_IP "$ESL_LISTEN_IP" 0-9a-fA-F:.
check ESL_PORT "$ESL_PORT" 0-9
check ESL_ACL "$ESL_ACL" 0-9a-z:./,
check SIP_DOMAIN "$SIP_DOMAIN" 0-9a-zA-Z:.-
# Never shown, so it has a message of its own
case $ESL_PASSWORD in
*[!0-9a-zA-Z._~-]*) fail "ESL_PASSWORD must be made of the characters 0-9a-zA-Z._~-" ;;
ClueCon) fail "ESL_PASSWORD is the well-known one: choose another" ;;
esac
[ "$ESL_PORT" -ge 1 ] && [ "$ESL_PORT" -le 65535 ] || fail "ESL_PORT=$ESL_PORT is not a port (1 to 65535)"
[ -w "$run" ] || fail "$run is not writable for user $(id -u): mount a volume or tmpfs it owns"

(umask 077 && echo "$ESL_PASSWORD" > "$run/esl-password")
export ESL_LISTEN_IP ESL_PORT ESL_ACL ESL_PASSWORD SIP_DOMAIN

exec freeswitch -nonat -nf -nc -conf /etc/freeswitch -log /var/log/freeswitch -db /var/lib/freeswitch/db \
	-run "$run" -certs /etc/freeswitch/tls -recordings /var/lib/freeswitch/recordings \
	-storage /var/lib/freeswitch/storage -cache /var/lib/freeswitch/cache -scripts /etc/freeswitch/scripts \
	-temp /tmp "$@"
