#!/bin/sh
# Make the password of the event socket and the user alice, unless they are there.
set -eu

password() {
	od -An -N12 -tx1 /dev/urandom | tr -d ' \n'
}

if [ ! -e /secrets/esl-password ]; then
	password > /secrets/esl-password
fi
if [ ! -e /users/alice.csv ]; then
	secret=$(password)
	cat > /users/alice.xml <<-EOF
		<include>
		  <user id="alice"><params><param name="password" value="$secret"/></params></user>
		</include>
	EOF
	# For SIPp
	printf 'SEQUENTIAL\nalice;%s;[authentication username=alice password=%s]\n' "$SIP_DOMAIN" "$secret" > /users/alice.csv
fi
echo "alice@$SIP_DOMAIN has the password $(sed -n 's/.* password=\(.*\)]/\1/p' /users/alice.csv)"
