# shellcheck shell=sh
# What a variable means together with others.
# shellcheck disable=SC2154 # The entrypoint sets the paths.

# Whether SIP_TRANSPORTS names $1
listens() {
	case ,$SIP_TRANSPORTS, in *",$1,"*) return 0 ;; esac
	return 1
}

check_transports() {
	listens udp || listens tcp || listens tls ||
		fail "SIP_TRANSPORTS='$SIP_TRANSPORTS' must have one of udp, tcp and tls in it: add one"
}

check_ports() {
	used=
	for item in "udp tcp:SIP_PORT:$SIP_PORT" "tls:SIP_TLS_PORT:$SIP_TLS_PORT" "ws:SIP_WS_PORT:$SIP_WS_PORT" \
		"wss:SIP_WSS_PORT:$SIP_WSS_PORT" ":ESL_PORT:$ESL_PORT"; do
		transports=${item%%:*} port=${item##*:} name=${item#*:} wanted=
		name=${name%:*}
		for transport in $transports; do
			! listens "$transport" || wanted=yes
		done
		[ -n "$wanted$([ -n "$transports" ] || echo yes)" ] || continue
		case $used in
		*" $port="*)
			other=${used##* "$port"=}
			fail "$name='$port' is ${other%% *} as well: give each transport and the event socket a port of its own"
			;;
		esac
		used="$used $port=$name "
	done
	[ "$RTP_END_PORT" -ge $((RTP_START_PORT + 3)) ] ||
		fail "RTP_END_PORT='$RTP_END_PORT' must be at least 3 more than RTP_START_PORT='$RTP_START_PORT'"
	if listens udp && [ "$SIP_PORT" -ge "$RTP_START_PORT" ] && [ "$SIP_PORT" -le "$RTP_END_PORT" ]; then
		fail "SIP_PORT='$SIP_PORT' is among the ports for media: move RTP_START_PORT or RTP_END_PORT"
	fi
}

family() {
	case $1 in
	*:*) echo IPv6 ;;
	*) echo IPv4 ;;
	esac
}

# $1 address that SIP listens on
check_external() {
	[ -z "$SIP_EXTERNAL_IP" ] || [ "$(family "$SIP_EXTERNAL_IP")" = "$(family "$1")" ] ||
		fail "SIP_EXTERNAL_IP='$SIP_EXTERNAL_IP' is $(family "$SIP_EXTERNAL_IP"), and SIP listens on $1: give one of the same kind"
}

check_event_socket() {
	case $ESL_LISTEN_IP in
	127.* | ::1) ;;
	*)
		[ -n "$ESL_PASSWORD" ] ||
			fail "ESL_LISTEN_IP='$ESL_LISTEN_IP' opens the event socket, and ESL_PASSWORD is empty: give one"
		[ -n "$ESL_ACL" ] ||
			fail "ESL_LISTEN_IP='$ESL_LISTEN_IP' opens the event socket, and ESL_ACL is empty: name the networks that may connect"
		;;
	esac
}

check_directory() {
	if [ -z "$DIRECTORY_URL" ]; then
		[ -z "$DIRECTORY_USER$DIRECTORY_PASSWORD" ] ||
			fail "DIRECTORY_USER or DIRECTORY_PASSWORD is given without DIRECTORY_URL: give the address, too"
		return
	fi
	[ -e "$modules/mod_xml_curl.so" ] || fail "DIRECTORY_URL='$DIRECTORY_URL': the image has no mod_xml_curl: build it in"
	[ -n "$DIRECTORY_USER" ] || [ -z "$DIRECTORY_PASSWORD" ] ||
		fail "DIRECTORY_PASSWORD is given without DIRECTORY_USER: give both or none"
	case $DIRECTORY_URL in
	https://*) readable DIRECTORY_CA_FILE "$DIRECTORY_CA_FILE" ;;
	esac
}

check_extension() {
	[ "$EXTENSION_DIALLING" = false ] || [ -n "$EXTENSION_DIAL_STRING" ] ||
		fail "EXTENSION_DIALLING='$EXTENSION_DIALLING', and EXTENSION_DIAL_STRING is empty: give one like sofia/gateway/trunk/NUMBER"
}

# Modules that don't work without a configuration, of which the image has none
check_configurations() {
	for module in $(items "$LOAD_MODULES"); do
		case $module in
		mod_amqp | mod_hiredis | mod_httapi | mod_json_cdr | mod_local_stream | mod_skinny | mod_xml_cdr | \
			mod_xml_rpc | mod_xml_scgi) ;;
		*) continue ;;
		esac
		name=${module#mod_}.conf
		grep -qs "<configuration[^>]*name=[\"']${name}[\"']" "$configuration"/*.xml ||
			fail "LOAD_MODULES='$LOAD_MODULES': $module needs a configuration: mount $configuration/$name.xml"
	done
}
