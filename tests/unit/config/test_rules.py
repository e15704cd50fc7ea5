"""TLS, SASL and secrets as settings: what cannot work is refused before anything starts, and no secret is shown."""

import io
import json
import logging

import msgspec
import pytest
import trustme

from tests.integration.secured import make
from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.cli import main
from tidecast.service.config.loader import load, resolve
from tidecast.service.config.secrets import Secret, masked
from tidecast.service.errors import UsageError
from tidecast.service.observability import logs

SECRET = "hunter2-\"quoted'\\and-long"
SASL = {"security_protocol": "SASL_SSL", "kafka_username": "alice"}


@pytest.fixture
def password(tmp_path):
    path = tmp_path / "password"
    path.write_text(SECRET + "\n")
    return str(path)


def test_a_password_comes_from_a_file_or_a_variable_without_the_newline_at_its_end(password):
    assert load({**SASL, "kafka_password": password}, {}).kafka_password.reveal() == SECRET
    assert load(SASL, {"TIDECAST_KAFKA_PASSWORD_FILE": password}).kafka_password.reveal() == SECRET
    assert load(SASL, {"TIDECAST_KAFKA_PASSWORD": SECRET}).kafka_password.reveal() == SECRET


def test_no_flag_takes_a_password_itself(capsys):
    assert main(["serve", "--kafka-password", SECRET]) == 2
    assert "Did you mean --kafka-password-file?" in capsys.readouterr().err


def test_a_password_given_twice_or_a_file_that_cannot_be_one_is_refused(tmp_path, password):
    with pytest.raises(UsageError, match="both TIDECAST_KAFKA_PASSWORD_FILE and TIDECAST_KAFKA_PASSWORD are set"):
        load(SASL, {"TIDECAST_KAFKA_PASSWORD_FILE": password, "TIDECAST_KAFKA_PASSWORD": "x"})
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load({**SASL, "kafka_password": str(tmp_path / "none")}, {})
    for content in ("", "\n", "two\nlines\n", "x" * 5_000):
        (tmp_path / "odd").write_text(content)
        with pytest.raises(UsageError, match="must contain the secret as its only line") as error:
            load({**SASL, "kafka_password": str(tmp_path / "odd")}, {})
        assert "lines" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"kafka_username": "a"}, "--kafka-username has no effect with the security protocol PLAINTEXT"),
        ({"security_protocol": "SASL_SSL"}, "SASL_SSL needs --kafka-username"),
        (SASL, "SASL_SSL needs --kafka-password-file"),
        ({"tls_ca_file": "ca"}, "--tls-ca-file has no effect"),
        ({"tls_cert_file": "c"}, "--tls-cert-file has no effect with the security protocol PLAINTEXT.*SSL"),
        ({"security_protocol": "SSL", "tls_key_file": "k"}, "has no effect without a certificate.*--tls-cert-file"),
        ({"security_protocol": "TLS"}, "must be one of PLAINTEXT, SSL, SASL_SSL, SASL_PLAINTEXT"),
        ({"sasl_mechanism": "GSSAPI"}, "must be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ({"model_sha256": "abc"}, "must be 64 hexadecimal digits"),
    ],
)
def test_combinations_that_cannot_work_are_refused(flags, says):
    with pytest.raises(UsageError, match=says):
        load(flags, {})


def test_a_password_is_not_sent_unencrypted_to_another_machine(password):
    plain = {**SASL, "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "kafka_password": password}
    for here in ("127.0.0.1:9092", "localhost:9092", "[::1]:9092"):
        load({**plain, "bootstrap_servers": here}, {})
    for there in ("kafka:9092", "127.0.0.1:9092,10.0.0.7:9092", "localhost.evil.example:9092"):
        with pytest.raises(UsageError, match="would send the password unencrypted"):
            load({**plain, "bootstrap_servers": there}, {})


def test_files_of_certificates_that_cannot_be_used_are_refused_with_their_name(tmp_path):
    files = make(tmp_path)
    other = tmp_path / "other.key"
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(other)
    tls = {"security_protocol": "SSL", "tls_ca_file": str(files.ca)}
    cert = {**tls, "tls_cert_file": str(files.client)}
    for flags, says in (
        ({**tls, "tls_ca_file": str(tmp_path / "none")}, "--tls-ca-file names cannot be read: No such file"),
        ({**tls, "tls_ca_file": str(files.password)}, "--tls-ca-file names holds no certificate"),
        ({**cert, "tls_key_file": str(other)}, "the key belongs to another certificate"),
        ({**cert, "tls_key_file": str(files.client_key)}, "the key's password is not the right one"),
        (cert, "the key is missing"),
    ):
        with pytest.raises(UsageError, match=says):
            connect_from_settings(load(flags, {}))
    right = {**cert, "tls_key_file": str(files.client_key), "tls_key_password": str(files.key_password)}
    connect_from_settings(load(right, {})).close()


def test_config_masks_secrets(monkeypatch, capsys, password):
    monkeypatch.setenv("TIDECAST_KAFKA_PASSWORD", SECRET)
    flags = ["config", "--security-protocol", "SASL_SSL", "--kafka-username", "alice"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("kafka_password ")] == [
        ["kafka_password", "***", "TIDECAST_KAFKA_PASSWORD"]
    ]
    assert main([*flags, "--json"]) == 0
    as_json = capsys.readouterr().out
    assert json.loads(as_json)["kafka_password"]["value"] == "***"
    assert "hunter2" not in out + as_json


def test_a_secret_is_in_no_repr(password):
    settings = load({**SASL, "kafka_password": password}, {})
    found = resolve({**SASL, "kafka_password": password}, {})
    copy = msgspec.structs.replace(settings, group="other")
    for shown in (repr(settings), str(settings), repr(found), f"{copy}", repr(msgspec.structs.asdict(settings))):
        assert "hunter2" not in shown
    assert copy.kafka_password.reveal() == SECRET


@pytest.mark.parametrize("formatter", [logs.TextFormatter, logs.JsonFormatter])
def test_a_secret_that_a_library_logs_is_masked_also_in_a_traceback(formatter):
    secret, stream = Secret(SECRET), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter())
    log = logging.Logger("kafka.any", logging.DEBUG)
    log.addHandler(handler)
    try:
        raise ValueError(f"cannot use {secret.reveal()!r}")
    except ValueError:
        log.debug("with configuration: %s", {"sasl_plain_password": secret.reveal()}, exc_info=True)
    log.debug("Send: %r", b"\0alice\0" + secret.reveal().encode())
    said = stream.getvalue()
    assert said.count("***") == 3 and "hunter2" not in said and "Traceback" in said


def test_a_secret_too_short_is_not_masked_inside_other_words():
    Secret("abc")
    assert masked("abcdef") == "abcdef"
