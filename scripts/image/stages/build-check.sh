#!/bin/sh
# build-check.sh [SERIES]: run sofia-sip's own tests in a container of the build
# stage, with the patches in directory SERIES applied. Prints a line per test
# program: its name and PASS, FAIL or whatever automake calls it. What the
# programs printed is in /usr/src/check afterwards.
set -eu

series=${1:-/nonexistent}
jobs=${JOBS:-1}
# test_nua waits for a name server that is not there.
limit=${LIMIT:-60}

# Without libcheck a third of the programs can't be built; getaddrinfo() wants /etc/services.
apt-get update -qq >&2
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends check netbase >&2

mkdir /usr/src/check
cd /usr/src/check
tar -xf /usr/src/sofia-sip.tar
"$(dirname "$0")/build-patch.sh" "$series" . >&2
{
	./bootstrap.sh
	./configure --disable-shared --disable-stun --without-doxygen
	make -j"$jobs"
	# The archive has no modes of scripts; automake of today runs them itself.
	find . -name 'run_*' -exec chmod +x {} +
	# A failed test is a result here, not an error.
	make -k check TESTS_ENVIRONMENT= LOG_COMPILER="timeout -k 5 $limit" || true
} > log 2>&1 || { tail log >&2; exit 1; }

find . -name '*.trs' | while read -r file; do
	echo "$(basename "$file" .trs) $(sed -n 's/^:test-result: //p' "$file")"
done | sort
