"""What kafka-python raises when Kafka refuses a connection becomes a sentence, whatever call it came from."""

from __future__ import annotations

import ssl

import pytest
from kafka import errors

from tidecast.service.broker.kafka_python.client import KafkaPythonClient
from tidecast.service.broker.security import Security
from tidecast.service.config.secrets import Secret
from tidecast.service.errors import BrokerError, ConnectionRejected

SECURITY = Security(protocol="SASL_SSL", mechanism="SCRAM-SHA-512", username="carol", password=Secret("correct horse"))
CLIENT = KafkaPythonClient("kafka:9093", 5.0, security=SECURITY)
SAID = "SaslAuthenticationFailedError: invalid credentials with SASL mechanism SCRAM-SHA-512"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_password_that_is_refused_while_reading_is_named_as_at_a_start(wrapped):
    error: errors.KafkaError = errors.SaslAuthenticationFailedError(SAID)
    with pytest.raises(ConnectionRejected) as raised, CLIENT.errors("reading readings"):
        raise errors.KafkaError(error) if wrapped else error
    assert str(raised.value).startswith("Kafka at kafka:9093 refuses the user 'carol' with SCRAM-SHA-512: ")
    assert "[Error 58]" not in str(raised.value) and "correct horse" not in str(raised.value)


def test_a_certificate_that_is_no_longer_trusted_is_named():
    error = ssl.SSLCertVerificationError(1, "certificate has expired")
    error.verify_message = "certificate has expired"
    said = r"certificate of Kafka at kafka:9093 is not trusted: .*expired"
    with pytest.raises(ConnectionRejected, match=said), CLIENT.errors("reading readings"):
        raise error


def test_a_wrong_argument_is_not_taken_for_a_wrong_password():
    with (
        pytest.raises(BrokerError, match=r"reading readings: .*ValueError: negative") as raised,
        CLIENT.errors("reading readings"),
    ):
        raise ValueError("negative")
    assert not isinstance(raised.value, ConnectionRejected)
