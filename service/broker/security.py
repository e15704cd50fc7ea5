"""TLS and SASL, as options of each library."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidecast.service.config.secrets import Secret
from tidecast.service.config.settings import Settings, flag
from tidecast.service.errors import UsageError


@dataclass(frozen=True, slots=True)
class Security:
    """Credentials for all clients of one broker. The settings check which combinations are valid."""

    protocol: str = "PLAINTEXT"
    mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password: Secret = field(default_factory=Secret)
    ca_file: str = ""  # "" = the authorities that this machine trusts
    cert_file: str = ""
    key_file: str = ""  # "" = in the certificate's file
    key_password: Secret = field(default_factory=Secret)

    @classmethod
    def of(cls, settings: Settings) -> Security:
        """From the settings."""
        return cls(
            protocol=settings.security_protocol,
            mechanism=settings.sasl_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password,
            ca_file=_expanded(settings.tls_ca_file),
            cert_file=_expanded(settings.tls_cert_file),
            key_file=_expanded(settings.tls_key_file),
            key_password=settings.tls_key_password,
        )

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """Whether a user name and a password are needed."""
        return self.protocol.startswith("SASL_")

    def context(self) -> ssl.SSLContext | None:
        """The TLS context, with its files read now; None without TLS. TLS 1.2 or later; host names are checked.

        Raises:
            UsageError: a file cannot be used.
        """
        if not self.tls:
            return None
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.ca_file:
            made.load_default_certs()
        else:
            _readable("tls_ca_file", self.ca_file)
            try:
                made.load_verify_locations(self.ca_file)
            except ssl.SSLError:
                raise UsageError(
                    f"the file that {flag('tls_ca_file')} names holds no certificate", got=self.ca_file, do=_PEM
                ) from None
        if self.cert_file:
            _readable("tls_cert_file", self.cert_file)
            if self.key_file:
                _readable("tls_key_file", self.key_file)
            try:
                # The password is a function: without one OpenSSL would ask at the terminal.
                made.load_cert_chain(self.cert_file, self.key_file or None, password=self.key_password.reveal)
            except (ssl.SSLError, ValueError) as error:
                raise UsageError(
                    f"the certificate of {flag('tls_cert_file')} and its key cannot be used: {_why(error)}",
                    got=f"{self.cert_file}, key {self.key_file or 'in the same file'}",
                    do=_PEM,
                ) from None
        return made

    def kafka_python(self) -> dict[str, Any]:
        """Options for kafka-python. Each client reads the files again, so that a renewed certificate is used."""
        options: dict[str, Any] = {"security_protocol": self.protocol, "ssl_context": self.context()}
        if self.sasl:
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password.reveal(),
            }
        return options

    def librdkafka(self) -> dict[str, Any]:
        """Options for librdkafka; without a CA file it finds the machine's own by itself."""
        options: dict[str, Any] = {"security.protocol": self.protocol}
        if self.sasl:
            options |= {
                "sasl.mechanism": self.mechanism,
                "sasl.username": self.username,
                "sasl.password": self.password.reveal(),
            }
        if self.tls:
            options |= {
                "enable.ssl.certificate.verification": True,
                "ssl.endpoint.identification.algorithm": "https",
                "ssl.ca.location": self.ca_file,
                "ssl.certificate.location": self.cert_file,
                "ssl.key.location": self.cert_file and (self.key_file or self.cert_file),
                "ssl.key.password": self.key_password.reveal(),
            }
        return {name: value for name, value in options.items() if value != ""}


PLAIN_TEXT = Security()

_PEM = "Give a PEM file (-----BEGIN …), readable for this user."


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path else ""


def _readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            return
    except OSError as error:
        raise UsageError(f"the file that {flag(name)} names cannot be read: {error.strerror}", got=path) from None


def _why(error: Exception) -> str:
    text = str(error)
    if "KEY_VALUES_MISMATCH" in text:
        return "the key belongs to another certificate"
    if "PEM" in text or "decrypt" in text.lower():
        return "not PEM, the key is missing, or the key's password is not the right one"
    return text
