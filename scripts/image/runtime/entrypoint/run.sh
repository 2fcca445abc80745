# shellcheck shell=sh
# FreeSWITCH as a process: its limits, its start, its end.
# shellcheck disable=SC2154 # The entrypoint sets the paths.

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

# Print the option for the priority of FreeSWITCH. By default it asks for that of
# real time, then for a better one than usual, and calls it two errors to get
# neither, as in any container that runs without special rights.
priority() {
	chrt --fifo 1 true 2>/dev/null || [ "$(nice -n -10 nice 2>/dev/null)" -lt 0 ] || echo -np
}

# Start FreeSWITCH with these options, and end as it does
start() {
	# shellcheck disable=SC2046 # One word or none.
	set -- freeswitch $(priority) -nonat -nf -nc -conf /etc/freeswitch -log /var/log/freeswitch -db "$lib/db" \
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
}
