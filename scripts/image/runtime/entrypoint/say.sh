# shellcheck shell=sh
# What the entrypoint tells, on stderr.

fail() {
	printf 'freeswitch-entrypoint: %s' "$1" | tr '\n' ' ' >&2
	echo >&2
	exit 78
}

warn() {
	echo "freeswitch-entrypoint: warning: $1" >&2
}
