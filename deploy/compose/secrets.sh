#!/bin/sh
# Once, into the volume that is mounted here: an authority, Kafka's certificate (in kafka.p12), and the password of the one
# user. What only Kafka may read is its own; `password` and `ca.crt` are for all that mount the volume.
set -eu
cd /etc/kafka/secrets
if [ -e ready ]; then echo "the secrets are there already"; exit 0; fi
rm -f ./*
umask 077
random() { head -c 30 /dev/urandom | base64 | tr -d '/+=\n'; }
random > store
store="-storetype PKCS12 -storepass:file store"
# shellcheck disable=SC2086
{
  keytool -genkeypair -alias ca -keystore ca.p12 $store -dname CN=tidecast-authority -ext bc:critical=ca:true \
    -ext ku:critical=keyCertSign -keyalg EC -groupname secp256r1 -validity 3650
  keytool -exportcert -rfc -alias ca -keystore ca.p12 $store -file ca.crt
  keytool -genkeypair -alias kafka -keystore kafka.p12 $store -dname CN=kafka -keyalg EC -groupname secp256r1 -validity 825
  keytool -certreq -alias kafka -keystore kafka.p12 $store -file kafka.csr
  keytool -gencert -rfc -alias ca -keystore ca.p12 $store -infile kafka.csr -outfile kafka.crt -validity 825 \
    -ext san=dns:kafka,dns:localhost -ext eku=serverAuth
  cat kafka.crt ca.crt > chain.crt
  keytool -importcert -noprompt -alias kafka -keystore kafka.p12 $store -file chain.crt
}
echo "password=$(cat store)" > kafka.properties
random > password
rm -f ca.p12 kafka.csr kafka.crt chain.crt store
chmod 644 password ca.crt
touch ready
echo "the secrets are made"
