# shellcheck shell=sh
# What FreeSWITCH reads at the start and what holds for this container only.
# shellcheck disable=SC2154 # The entrypoint sets the paths.

derive() {
	if [ -z "$ESL_PASSWORD" ]; then
		ESL_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
	fi
	acl=127.0.0.0/8,::1/128
	case $ESL_LISTEN_IP in
	127.* | ::1 | 0.0.0.0 | ::) ;;
	*) acl=$acl,$ESL_LISTEN_IP ;;
	esac
	networks=
	for network in $(items "$acl${ESL_ACL:+,$ESL_ACL}"); do
		case $network in
		*/*) ;;
		*:*) network=$network/128 ;;
		*) network=$network/32 ;;
		esac
		networks=$networks${networks:+,}$network
	done
	ESL_ACL=$networks
	SIP_NAT=no-nat
	[ -z "$SIP_EXTERNAL_IP" ] || SIP_NAT=behind-nat
	SIP_TLS=false SIP_TLS_ONLY=false SIP_TLS_VERIFY=none SIP_WS_BINDING='' SIP_WSS_BINDING=''
	if listens udp && listens tcp; then
		SIP_BIND=udp,tcp
	elif listens udp; then
		SIP_BIND=udp
	else
		SIP_BIND=tcp
	fi
	if listens tls; then
		SIP_TLS=true
		listens udp || listens tcp || SIP_TLS_ONLY=true
		[ -z "$TLS_CLIENT_CA_FILE" ] || SIP_TLS_VERIFY=in
	fi
	! listens ws || SIP_WS_BINDING=:$SIP_WS_PORT
	! listens wss || SIP_WSS_BINDING=:$SIP_WSS_PORT
	# What is not logged by the core, nothing else can log.
	CORE_LOG_LEVEL=info
	[ "${LOG_LEVEL:?}" != debug ] || CORE_LOG_LEVEL=debug
	LOG_LEVELS=debug,info,notice,warning,err,crit,alert
	LOG_LEVELS=$LOG_LEVEL${LOG_LEVELS#*"$LOG_LEVEL"}
	DIRECTORY_CREDENTIALS=
	[ -z "$DIRECTORY_USER" ] || DIRECTORY_CREDENTIALS=$DIRECTORY_USER:$DIRECTORY_PASSWORD
	# An empty one is nowhere to dial to.
	EXTENSION_PREFIX=${EXTENSION_DIAL_STRING%%NUMBER*} EXTENSION_SUFFIX=${EXTENSION_DIAL_STRING#*NUMBER}
	export EXTENSION_PREFIX EXTENSION_SUFFIX
	export SIP_DOMAIN SIP_NAT SIP_BIND SIP_TLS SIP_TLS_ONLY SIP_TLS_VERIFY SIP_WS_BINDING SIP_WSS_BINDING
	export ESL_PASSWORD ESL_ACL DIRECTORY_CREDENTIALS LOG_LEVELS CORE_LOG_LEVEL
}

write_modules() {
	[ -z "$DIRECTORY_URL" ] || LOAD_MODULES=mod_xml_curl${LOAD_MODULES:+,$LOAD_MODULES}
	echo '<include>'
	for module in $(echo "$LOAD_MODULES" | tr , '\n' | sort -u); do
		echo "<load module=\"$module\"/>"
	done
	echo '</include>'
}

# For fs_cli, which finds it by way of /etc/fs_cli.conf
write_client() {
	case $ESL_LISTEN_IP in
	0.0.0.0) host=127.0.0.1 ;;
	::) host=::1 ;;
	*) host=$ESL_LISTEN_IP ;;
	esac
	printf '[default]\nhost => %s\nport => %s\npassword => %s\n' "$host" "$ESL_PORT" "$ESL_PASSWORD"
}
