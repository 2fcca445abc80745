#!/bin/sh
# build-patch.sh SERIES TREE: apply the patches in directory SERIES to TREE.
# `patch` and not `git apply`: it gives the files new times, which make needs.
set -eu

for file in "$1"/*.patch; do
	[ -e "$file" ] || continue
	echo "applying $(basename "$file")"
	patch --directory="$2" --strip=1 --fuzz=0 --no-backup-if-mismatch < "$file"
done
