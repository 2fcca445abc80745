# shellcheck shell=sh
# The table of variables, and what the environment has of it.
# shellcheck disable=SC2154 # The entrypoint sets the paths.

# Whether all of $1 matches the extended regular expression $2
like() {
	# By bytes; it ends with a null, as a line break is none of its ends.
	printf '%s\0' "$1" | LC_ALL=C grep -qzxE -- "$2"
}

# Print the items of the list $1
items() {
	echo "$1" | tr , ' '
}

# What only the image knows of a value: $1 name, $2 value, $3 item

has_codec() {
	grep -qixF -- "${3%%@*}" "$share/codecs" ||
		fail "$1='$2': the image has no codec '${3%%@*}': use $(paste -sd, "$share/codecs" | sed 's/,/, /g')"
}

has_module() {
	[ -e "$modules/$3.so" ] || fail "$1='$2': the image has no $3: use a module set that has it"
}

# $1 name, $2 file: read a secret into the variable NAME
read_secret() {
	eval "given=\${$1-}"
	# shellcheck disable=SC2154 # eval sets it.
	[ -z "$given" ] || fail "$1 and ${1}_FILE are both given: give one of them"
	[ -f "$2" ] && [ -r "$2" ] || fail "${1}_FILE='$2' is not a file that user $(id -u) can read: mount it, or mend its mode"
	secret=$(cat -- "$2")
	[ -n "$secret" ] || fail "${1}_FILE='$2' is empty: write the value into it"
	eval "$1=\$secret"
}

load_variables() {
	known=
	# shellcheck disable=SC2034 # eval reads the default.
	while IFS='|' read -r name kind default; do
		known="$known $name "
		if [ "$kind" = secret ]; then
			known="$known ${name}_FILE "
			eval "file=\${${name}_FILE-}"
			# shellcheck disable=SC2154
			[ -z "$file" ] || read_secret "$name" "$file"
		fi
		eval "value=\${$name-}"
		# shellcheck disable=SC2154
		if [ -n "$value" ]; then
			check "$name" "$value" "$kind"
		else
			eval "$name=\$default"
		fi
		# shellcheck disable=SC2163 # The variable of that name.
		export "$name"
	done < "$share/variables"
}

# What looks like one of the variables, and is none
warn_about_names() {
	# By the first words of the variables there are, with an S or without: REQUEST_PER_SECOND is meant for one, too.
	families=$(echo "$known" | tr ' ' '\n' | sed -n 's/S\{0,1\}_.*//p' | sort -u | paste -sd '|')
	for name in $(env | sed -nE "s/^(($families)S?_[A-Z0-9_]*)=.*/\1/p"); do
		case $known in
		*" $name "*) ;;
		*) warn "$name is not one of the variables of this image" ;;
		esac
	done
}
