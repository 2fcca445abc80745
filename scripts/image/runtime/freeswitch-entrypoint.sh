#!/bin/sh
# freeswitch-entrypoint.sh [OPTION... | check | COMMAND...]: check the settings in
# the environment and start FreeSWITCH in the foreground, with OPTIONs if given.
#   check    only check them
#   COMMAND  run it instead (sh, say)
#
# share/variables lists the variables, NAME|KIND|DEFAULT a line. Of each there is
# also NAME_FILE, if it is a secret: a file that has the value. A wrong value
# ends it with one line on stderr and status 78, before anything is started.
#
# share/entrypoint has the functions, a file for each matter.
# shellcheck disable=SC2034,SC2154 # They use the paths, and set more.
set -eu

# First of all: the kernel keeps from a container's first process what it has no trap for.
trap 'exit 143' TERM INT

share=/usr/local/share/freeswitch
modules=/usr/local/freeswitch/mod
etc=/etc/freeswitch
configuration=$etc/autoload_configs
run=/run/freeswitch
lib=/var/lib/freeswitch

case ${1:-} in
"" | -* | check) ;;
*) exec "$@" ;;
esac

for part in say variables values together network files tls derive run; do
	# shellcheck source=/dev/null
	. "$share/entrypoint/$part.sh"
done

load_variables
check_transports
check_ports
[ "$SIP_LISTEN_IP" = auto ] || check_external "$SIP_LISTEN_IP"
check_event_socket
check_directory
check_configurations
check_extension
check_files
check_tls
check_directories
warn_about_names
warn_about_users
warn_about_certificates
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
start "$@"
