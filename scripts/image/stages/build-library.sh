#!/bin/sh
# build-library.sh NAME [OPTION...]: build and install the library in
# /usr/src/NAME.tar, configured with OPTIONs. Does nothing without that file:
# then the library is in the tree of FreeSWITCH.
set -eu

name=$1
shift
cd /usr/src
[ -e "$name.tar" ] || exit 0
mkdir "$name"
tar -xf "$name.tar" -C "$name"
cd "$name"
./bootstrap.sh
./configure --with-pic --disable-static "$@" CFLAGS="-O2 -g0"
make -j"$JOBS"
make install
ldconfig
