# shellcheck shell=sh
# The files that are mounted, and the directories that FreeSWITCH writes to.
# shellcheck disable=SC2154 # The entrypoint sets the paths.

# $1 name, $2 file
readable() {
	[ -f "$2" ] || fail "$1='$2': there is no such file: mount it, or name another"
	[ -r "$2" ] || fail "$1='$2' is not readable for user $(id -u): mend its owner or mode"
}

# Print those of the files that are there
list() {
	for file; do
		[ ! -e "$file" ] || echo "$file"
	done
}

# Print where the files that standard input names cease to be XML, with any number
# of roots each. xmlwf reads no further, of which its writers would complain.
xml_faults() {
	{
		printf '<files>'
		xargs -r -d '\n' awk '
			FNR == 1 { printf "%s<file>", first++ ? "</file>" : "" }
			{ gsub(/<\?[^?]*\?>/, ""); gsub(/&/, "+"); print }
			END { if (first) printf "</file>" }'
		printf '</files>'
	} 2>/dev/null | xmlwf -e ISO-8859-1 || true
}

# The files that FreeSWITCH makes one document of. It passes over a line with
# <include> and whatever else is on it, and where the document ends too early it
# does without the rest; of other faults it tells the line in the document.
check_files() {
	for directory in "$etc/directory" "$etc/dialplan" "$configuration"; do
		[ ! -e "$directory" ] || { [ -r "$directory" ] && [ -x "$directory" ]; } ||
			fail "$directory is not readable for user $(id -u): mend its owner or mode"
	done
	set -- "$etc"/directory/*.xml "$etc"/dialplan/*.xml "$configuration"/*.xml
	for file; do
		[ ! -e "$file" ] || [ -r "$file" ] || fail "$file is not readable for user $(id -u): mend its owner or mode"
	done
	# shellcheck disable=SC2016 # The variables are awk's.
	lost=$(list "$@" | xargs -r -d '\n' awk '
		function check_end() {
			if (text && text !~ />[ \t\r]*$/) { print file ": line " line ": it ends in the middle of a tag: complete it" }
			text = ""
		}
		FNR == 1 { check_end(); file = FILENAME }
		/[^ \t\r]/ { text = $0; line = FNR }
		/<\/?include>|<\?/ {
			gsub(/<!--.*-->|<\/?include>|<\?[^?]*\?>/, "")
			if (/[^ \t\r]/) {
				print FILENAME ": line " FNR ": FreeSWITCH passes over a line with <include>, </include> or <?: " \
					"give that a line of its own"
			}
		}
		END { check_end() }' 2>/dev/null | head -n 1)
	[ -z "$lost" ] || fail "$lost"
	[ -n "$(list "$@" | xml_faults)" ] || return 0
	for file; do
		fault=$(list "$file" | xml_faults)
		case $fault in
		# Of what is no XML either, FreeSWITCH is content with much: characters, encodings, comments.
		*"mismatched tag" | *"unclosed token" | *"unclosed CDATA section")
			fail "$file: line $(echo "$fault" | cut -d: -f2): ${fault##*: }: correct the XML"
			;;
		esac
	done
}

check_directories() {
	for directory in "$run" /tmp "$lib/db" "$lib/recordings" "$lib/storage" "$lib/cache" /var/log/freeswitch; do
		mkdir -p "$directory" 2>/dev/null && [ -w "$directory" ] ||
			fail "$directory is not writable for user $(id -u): mount a volume that it owns, or a tmpfs"
	done
}

warn_about_users() {
	set -- "$etc"/directory/*.xml
	[ -n "$DIRECTORY_URL" ] || [ -e "$1" ] ||
		warn "there are no users: mount them to /etc/freeswitch/directory, or set DIRECTORY_URL"
}
