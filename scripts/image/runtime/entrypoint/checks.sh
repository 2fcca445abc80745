# shellcheck shell=sh
# One value by itself.
# The checks take a name and a value, and further arguments of the kind. They
# never let through what would mean something in XML or to FreeSWITCH.
# shellcheck disable=SC2154 # The entrypoint sets the paths.

# $3 characters, as in a bracket expression
check_characters() {
	case $2 in
	*[!$3]*) fail "$1='$2' must be made of the characters $3: correct it" ;;
	esac
}

check_boolean() {
	case $2 in
	true | false) ;;
	*) fail "$1='$2' must be true or false" ;;
	esac
}

# $3 lowest, $4 highest, $5 what else it may be
check_integer() {
	case $2 in
	0?* | *[!0-9]* | ??????????*) fail "$1='$2' must be ${5:+$5 or }a whole number from $3 to $4" ;;
	esac
	[ "$2" -ge "$3" ] && [ "$2" -le "$4" ] || fail "$1='$2' must be ${5:+$5 or }a whole number from $3 to $4"
}

check_port() {
	case $2 in
	0* | *[!0-9]* | ??????*) fail "$1='$2' is not a port: give a number from 1 to 65535" ;;
	esac
	[ "$2" -le 65535 ] || fail "$1='$2' is not a port: give a number from 1 to 65535"
}

check_timeout() {
	[ "$2" = 0 ] || check_integer "$1" "$2" 2 32767 0
}

# Whether $1 is an IPv4 address
is_ipv4() {
	case $1 in
	*[!0-9.]* | *..* | .* | *.) return 1 ;;
	esac
	(
		IFS=.
		# shellcheck disable=SC2086 # It is to be split.
		set -- $1
		[ $# -eq 4 ] || exit 1
		for part; do
			case $part in ????* | 0?*) exit 1 ;; esac
			[ "$part" -le 255 ] || exit 1
		done
	)
}

# Whether $1 is an IPv6 address
is_ipv6() {
	case $1 in
	*[!0-9a-fA-F:]* | *:::* | *::*::* | *[0-9a-fA-F][0-9a-fA-F][0-9a-fA-F][0-9a-fA-F][0-9a-fA-F]*) return 1 ;;
	:[!:]* | *[!:]: | *:*:*:*:*:*:*:*:*:*) return 1 ;;
	# Eight colons are right where two of them begin or end it.
	::* | *::) return 0 ;;
	*:*:*:*:*:*:*:*:*) return 1 ;;
	*::* | *:*:*:*:*:*:*:*) return 0 ;;
	esac
	return 1
}

check_address() {
	is_ipv4 "$2" || is_ipv6 "$2" || fail "$1='$2' is not an IP address: give one like 192.0.2.10 or 2001:db8::10"
}

check_auto_or_address() {
	[ "$2" = auto ] || is_ipv4 "$2" || is_ipv6 "$2" ||
		fail "$1='$2' is not an IP address: give one of this machine, or auto"
	case $2 in
	0.0.0.0 | ::) fail "$1='$2': SIP needs the address that clients are told: give one of this machine, or auto" ;;
	esac
}

# Items with commas between
check_items() {
	case $2 in
	*[!0-9a-zA-Z:./,@+_-]* | *,,* | ,* | *,) fail "$1='$2' is not a list: give items with commas between, without spaces" ;;
	esac
}

# Without a length it is one address
check_networks() {
	check_items "$1" "$2"
	for network in $(items "$2"); do
		address=${network%/*} length=${network##*/}
		if [ "$length" = "$network" ]; then
			length=0
		fi
		if is_ipv4 "$address"; then
			most=32
		elif is_ipv6 "$address"; then
			most=128
		else
			fail "$1='$2': '$network' is not a network: give ones like 192.0.2.0/24, with commas between"
		fi
		case $length in
		"" | *[!0-9]* | ????*) fail "$1='$2': '/$length' is not the length of a network: give a number up to $most" ;;
		esac
		[ "$length" -le "$most" ] || fail "$1='$2': '/$length' is not the length of a network: give a number up to $most"
	done
}

# $3... what may be in the list
check_list() {
	check_items "$1" "$2"
	name=$1 list=$2
	shift 2
	for item in $(items "$list"); do
		case " $* " in
		*" $item "*) ;;
		*) fail "$name='$list': there is no '$item': use $(echo "$*" | sed 's/ /, /g')" ;;
		esac
	done
}

# $3... what it may be
check_choice() {
	name=$1 choice=$2
	shift 2
	case " $* " in
	*" $choice "*) ;;
	*) fail "$name='$choice' is none of $(echo "$*" | sed 's/ /, /g'): use one of them" ;;
	esac
}

check_codecs() {
	check_items "$1" "$2"
	for codec in $(items "$2"); do
		grep -qixF -- "${codec%%@*}" "$share/codecs" ||
			fail "$1='$2': the image has no codec '${codec%%@*}': use $(paste -sd, "$share/codecs" | sed 's/,/, /g')"
		case $codec in
		*@*) echo "${codec#*@}" | grep -qE '^[0-9]+[hibck](@[0-9]+[hibck])*$' ||
			fail "$1='$2': '@${codec#*@}' is no parameter of a codec: give ones like @16000h@20i" ;;
		esac
	done
}

check_modules() {
	check_items "$1" "$2"
	for module in $(items "$2"); do
		case $module in
		mod_*[!a-z0-9_]* | [!m]*) fail "$1='$2': '$module' is not a module: give names like mod_amqp" ;;
		esac
		[ -e "$modules/$module.so" ] || fail "$1='$2': the image has no $module: use a module set that has it"
	done
}

check_name() {
	check_characters "$1" "$2" 0-9a-zA-Z:._-
}

check_word() {
	check_characters "$1" "$2" 0-9a-zA-Z@._~-
}

check_path() {
	check_characters "$1" "$2" 0-9a-zA-Z/@._+-
	case $2 in
	/*) ;;
	*) fail "$1='$2' is not an absolute path: begin it with /" ;;
	esac
}

check_url() {
	check_characters "$1" "$2" "0-9a-zA-Z/:?=%@.,_~+-"
	case $2 in
	http://*@* | https://*@*) fail "$1 has a user in it: give it as ${1%_URL}_USER and ${1%_URL}_PASSWORD" ;;
	http://?* | https://?*) ;;
	*) fail "$1='$2' is not an address: begin it with https:// or http://" ;;
	esac
}

# Never shown, so it has messages of its own
check_secret() {
	case $2 in
	*[!0-9a-zA-Z._~-]*) fail "$1 must be made of the characters 0-9a-zA-Z._~- : choose another" ;;
	ClueCon) fail "$1 is the well-known one: choose another" ;;
	esac
}
