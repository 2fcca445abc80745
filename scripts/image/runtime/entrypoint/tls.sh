# shellcheck shell=sh
# Certificates and keys: as they are given, and as the stack wants them.
# shellcheck disable=SC2154 # The entrypoint sets the paths.

check_certificates() {
	readable TLS_CERT_FILE "$TLS_CERT_FILE"
	readable TLS_KEY_FILE "$TLS_KEY_FILE"
	certified=$(openssl x509 -in "$TLS_CERT_FILE" -noout -pubkey 2>/dev/null) ||
		fail "TLS_CERT_FILE='$TLS_CERT_FILE' has no certificate in PEM: convert it, or name another"
	key=$(openssl pkey -in "$TLS_KEY_FILE" -passin pass: -pubout 2>/dev/null) ||
		fail "TLS_KEY_FILE='$TLS_KEY_FILE' has no key in PEM without a passphrase: convert it, or name another"
	[ "$certified" = "$key" ] ||
		fail "TLS_KEY_FILE='$TLS_KEY_FILE' is not the key of the first certificate in TLS_CERT_FILE='$TLS_CERT_FILE': name the right one"
	if [ -n "$TLS_CLIENT_CA_FILE" ]; then
		readable TLS_CLIENT_CA_FILE "$TLS_CLIENT_CA_FILE"
		openssl x509 -in "$TLS_CLIENT_CA_FILE" -noout 2>/dev/null ||
			fail "TLS_CLIENT_CA_FILE='$TLS_CLIENT_CA_FILE' has no certificate in PEM: convert it, or name another"
	fi
}

check_tls() {
	if listens tls || listens wss; then
		check_certificates
	fi
	[ -z "$TLS_CLIENT_CA_FILE" ] || listens tls ||
		fail "TLS_CLIENT_CA_FILE='$TLS_CLIENT_CA_FILE' is for TLS: add tls to SIP_TRANSPORTS"
}

warn_about_certificates() {
	[ -z "$TLS_CLIENT_CA_FILE" ] || ! listens wss ||
		warn "TLS_CLIENT_CA_FILE='$TLS_CLIENT_CA_FILE' does not hold for WSS: its clients need no certificate"
	if listens tls || listens wss; then
		openssl x509 -in "$TLS_CERT_FILE" -noout -checkend 0 >/dev/null ||
			warn "the certificate in TLS_CERT_FILE='$TLS_CERT_FILE' has expired: renew it"
	fi
}

write_certificates() {
	mkdir -p "$run/tls"
	if listens tls || listens wss; then
		# The stack wants certificate and key in one file.
		for file in agent.pem wss.pem; do
			{ cat -- "$TLS_CERT_FILE" && echo && cat -- "$TLS_KEY_FILE"; } > "$run/tls/$file"
		done
		{
			cat -- "${TLS_CLIENT_CA_FILE:-/etc/ssl/certs/ca-certificates.crt}"
			write_chain
		} > "$run/tls/cafile.pem"
	else
		# What an earlier start was given is no longer for use.
		rm -f "$run/tls/agent.pem" "$run/tls/cafile.pem" "$run/tls/wss.pem"
		make_certificate "$run/tls/wss.pem"
	fi
}

# MSRP wants one, too. What is missing FreeSWITCH makes itself, with an RSA key of
# 4096 bits, which takes seconds of each start. Of dtls-srtp.pem it takes no other.
make_certificate() {
	# A full disk is no error for openssl, and an empty file is none for FreeSWITCH.
	if OPENSSL_CONF=/dev/null openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
		-days 36500 -subj /C=US/CN=FreeSWITCH -keyout "$1.new" -out "$1.new" 2>/dev/null &&
		openssl x509 -in "$1.new" -noout 2>/dev/null && openssl pkey -in "$1.new" -passin pass: -noout 2>/dev/null; then
		mv "$1.new" "$1"
	else
		rm -f "$1.new"
	fi
}

# Print the intermediate certificates of TLS_CERT_FILE. The stack sends its own
# certificate only; what issued that, OpenSSL adds if it finds it among the
# authorities. One that has issued itself would be an authority there.
write_chain() {
	rm -f "$run"/tls/chain.*
	awk -v name="$run/tls/chain" '/-----BEGIN CERTIFICATE-----/ { n++ } n > 1 { print > (name "." n) }' "$TLS_CERT_FILE"
	for file in "$run"/tls/chain.*; do
		[ -e "$file" ] || continue
		[ "$(openssl x509 -in "$file" -noout -subject_hash)" = "$(openssl x509 -in "$file" -noout -issuer_hash)" ] ||
			openssl x509 -in "$file"
		rm -f "$file"
	done
}
