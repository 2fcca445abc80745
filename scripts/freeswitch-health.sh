#!/bin/sh
# freeswitch-health.sh: ask FreeSWITCH over its event socket whether it is ready
# and its SIP profiles run, and whether its database has room. Prints what it says; status 0 if all is well.
set -eu

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
fs_cli -T 2000 -t 4000 -x 'sofia status' | awk -F '\t' '
	$2 ~ /^ *profile$/ { if ($4 ~ /^RUNNING/) running++; else { print "SIP profile" $1 " is " $4; bad = 1 } }
	END { if (!running) print "no SIP profile runs"; exit bad || !running }'
echo ready
