#!/bin/sh
# build-dist.sh DIRECTORY: gather what the runtime image needs.
#   DIRECTORY/root      installed files, stripped
#   DIRECTORY/packages  Debian packages that hold the shared libraries it links
set -eu

root=$1/root
prefix=/usr/local/freeswitch

mkdir -p "$root/usr/local/lib" "$root$prefix"
find /usr/local/lib -maxdepth 1 -name 'lib*.so.*' -exec cp -a {} "$root/usr/local/lib/" \;
for directory in bin lib mod; do
	cp -a "$prefix/$directory" "$root$prefix/"
done
rm -rf "$root$prefix/lib/pkgconfig"
find "$root" \( -name '*.a' -o -name '*.la' \) -exec rm -f {} +
find "$root" -type f -exec sh -c 'strip --strip-unneeded "$1" 2>/dev/null || true' sh {} \;
mkdir -p "$root/etc/ld.so.conf.d"
echo "$prefix/lib" > "$root/etc/ld.so.conf.d/freeswitch.conf"

find "$root" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec ldd {} + 2>/dev/null |
	awk '$3 ~ /^\// { print $3 }' | sort -u | grep -v '^/usr/local/' |
	while read -r library; do
		# dpkg knows a library by its real path or by the one before /usr was merged
		dpkg-query --search "$library" 2>/dev/null ||
			dpkg-query --search "$(realpath "$library")" 2>/dev/null ||
			dpkg-query --search "${library#/usr}" 2>/dev/null || {
			echo "build-dist.sh: no package holds $library" >&2
			exit 1
		}
	done | cut -d: -f1 | sort -u > "$1/packages"
