"""A real Kafka that asks who is there: TLS with SASL on one port, TLS with certificates of both sides on another."""

from types import SimpleNamespace

import trustme
from cryptography.hazmat.primitives import serialization
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.support.kafka import own_kafka
from tidecast.service.broker.embedded.server import free_port
from tidecast.service.broker.security import Security
from tidecast.service.config.secrets import Secret

LIMITED = "bob"  # may do what he is allowed, with the same password
CHANGING = "carol"  # made by the test that changes the password
USER, PASSWORD = "alice", "s3cret-\"pass'word\\of-alice"
KEY_PASSWORD = "k3y-pass-of-the-certificate"


def write_key_and_chain(path, issued, *, password=None, key_only=False):
    """PKCS#8, as Java reads keys; encrypted with a password where one is given."""
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    how = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    path.write_bytes(pem if key_only else pem + b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return path


def make(folder):
    """The files of an authority, of Kafka (known as `localhost`, and by no other name), and of a client."""
    authority, stranger = trustme.CA(), trustme.CA()
    files = SimpleNamespace(folder=folder, ca=folder / "ca.pem", other_ca=folder / "other-ca.pem")
    authority.cert_pem.write_to_path(files.ca)
    stranger.cert_pem.write_to_path(files.other_ca)
    files.kafka = write_key_and_chain(folder / "kafka.pem", authority.issue_cert("localhost"))
    client = authority.issue_cert("client@tidecast")
    files.client = folder / "client.pem"
    files.client.write_bytes(b"".join(blob.bytes() for blob in client.cert_chain_pems))
    files.client_key = write_key_and_chain(folder / "client.key", client, password=KEY_PASSWORD, key_only=True)
    files.strangers = write_key_and_chain(folder / "stranger.pem", stranger.issue_cert("client@nowhere"))
    files.password = folder / "password"
    files.password.write_text(PASSWORD + "\n")
    files.wrong_password = folder / "wrong-password"
    files.wrong_password.write_text("wr0ng-password-of-alice\n")
    files.key_password = folder / "key-password"
    files.key_password.write_text(KEY_PASSWORD)
    return files


class SecuredKafka:
    """Kafka on some ports: `open` (no questions, for the test itself), `sasl` (TLS; SCRAM, PLAIN), `mutual` (mTLS), and
    `misnamed`, TLS, where it calls itself 127.0.0.1 to who asks."""

    def __init__(self, folder):
        self.files = make(folder)
        sasl, mutual, other = free_port(), free_port(), free_port()
        self.sasl, self.mutual, self.misnamed = (f"localhost:{port}" for port in (sasl, mutual, other))
        here = "PLAINTEXT://127.0.0.1:{port}"
        bound = f"SASL://127.0.0.1:{sasl},MUTUAL://127.0.0.1:{mutual},OTHER://127.0.0.1:{other}"
        told = f"SASL://localhost:{sasl},MUTUAL://localhost:{mutual},OTHER://127.0.0.1:{other}"
        protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL,OTHER:SSL"
        jaas = "org.apache.kafka.common.security"
        quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"').replace("\\", "\\\\")  # JAAS, then properties
        properties = {
            "listeners": f"{here},{bound},CONTROLLER://127.0.0.1:{{controller_port}}",
            "advertised.listeners": f"{here},{told}",
            "listener.security.protocol.map": protocols,
            "inter.broker.listener.name": "PLAINTEXT",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{USER};User:{CHANGING};User:client",  # all but LIMITED
            "ssl.principal.mapping.rules": "RULE:^.*$/client/",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.files.kafka),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.files.ca),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.sasl.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{jaas}.scram.ScramLoginModule required;",
            "listener.name.sasl.plain.sasl.jaas.config": (
                f'{jaas}.plain.PlainLoginModule required user_{USER}="{quoted}";'
            ),
        }
        self.embedded = own_kafka(folder / "kafka", properties=properties)
        self.embedded.start(print)
        self.open = self.embedded.bootstrap_servers
        for user in (USER, LIMITED):
            self.set_password(user, PASSWORD)

    def set_password(self, user, password):
        """With SCRAM; the user is made where there is none."""
        admin = KafkaAdminClient(bootstrap_servers=self.open)
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, ScramMechanism.SCRAM_SHA_512, password)])
        admin.close()

    def take_away(self, topic, operation="ANY"):
        """LIMITED may not do this with the topic any more, or nothing at all."""
        admin = KafkaAdminClient(bootstrap_servers=self.open)
        pattern = ResourcePatternFilter(ResourceType.TOPIC, topic, ACLResourcePatternType.LITERAL)
        admin.delete_acls([ACLFilter(f"User:{LIMITED}", "*", ACLOperation[operation], ACLPermissionType.ANY, pattern)])
        admin.close()

    def allow(self, rights):
        """Give LIMITED these rights: (kind of resource, name, what), a name that ends with `*` being a beginning."""
        acls = []
        for kind, name, operation in rights:
            pattern = ACLResourcePatternType.PREFIXED if name.endswith("*") else ACLResourcePatternType.LITERAL
            resource = ResourcePattern(ResourceType[kind], name.removesuffix("*"), pattern)
            acls.append(ACL(f"User:{LIMITED}", "*", ACLOperation[operation], ACLPermissionType.ALLOW, resource))
        admin = KafkaAdminClient(bootstrap_servers=self.open)
        admin.create_acls(acls)
        admin.close()

    def flags(self, kind):
        """The flags with which a command gets in."""
        if kind == "mTLS":
            return [
                f"--bootstrap-servers={self.mutual}",
                "--security-protocol=SSL",
                f"--tls-ca-file={self.files.ca}",
                f"--tls-cert-file={self.files.client}",
                f"--tls-key-file={self.files.client_key}",
                f"--tls-key-password-file={self.files.key_password}",
            ]
        return [
            f"--bootstrap-servers={self.sasl}",
            "--security-protocol=SASL_SSL",
            f"--sasl-mechanism={kind}",
            f"--kafka-username={USER}",
            f"--kafka-password-file={self.files.password}",
            f"--tls-ca-file={self.files.ca}",
        ]

    def security(self):
        """The same for a port, with SCRAM."""
        return Security("SASL_SSL", username=USER, password=Secret(PASSWORD), ca_file=str(self.files.ca))
