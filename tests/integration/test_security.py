"""TLS and SASL on a real Kafka: who is allowed gets in, who is not gets the reason, and no secret is logged."""

import re
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.secured import CHANGING, KEY_PASSWORD, LIMITED, PASSWORD, SecuredKafka
from tests.support.counted import Counted
from tests.support.serving import serving
from tests.support.watching import Watch
from tests.support.worker_process import tidecast
from tidecast.service import cli
from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.embedded.server import free_port
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.doctor.patient import GROUP_RIGHTS, TOPIC_RIGHTS

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
KINDS = ("SCRAM-SHA-512", "PLAIN", "mTLS")


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    kafka = SecuredKafka(tmp_path_factory.mktemp("secured"))
    yield kafka
    kafka.embedded.stop()


@pytest.fixture(params=CLIENTS)
def client(request):
    return request.param


@pytest.fixture
def t(secured, client):
    """The topics of one test, looked at through the port that asks no questions."""
    made = Counted(secured.open, 2, 3, client=client)
    yield made
    made.broker.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_answers_exactly_once_over_tls_and_no_secret_is_seen(secured, t, model, kind):
    t.feed(5)
    flags = ("--model", model, *t.flags, *secured.flags(kind), "--log-level=debug")
    with serving(*flags) as worker:
        worker.ready()
        t.feed(5)
        t.read(t.forecasts, t.steps * len(t.series))
        pages = "".join(worker.get(page)[1] for page in ("/metrics", "/series/s0-0", "/readyz", "/livez", "/"))
        code, log = worker.end()
    assert code == 0, log
    t.feed(2)
    with serving(*flags) as worker:  # restores its states over TLS
        t.read(t.forecasts, t.steps * len(t.series))
        code, again = worker.end()
    assert code == 0, again
    t.check()
    assert len(log) > 10_000, "the libraries have said what they do"
    no_secret_in(log + again + pages)
    assert "SaslAuthenticate" not in log + again, "who reads a proof of the password can guess at it"


def no_secret_in(text):
    for secret in (PASSWORD, KEY_PASSWORD):
        for form in (secret, secret.encode().hex(), repr(secret)[1:-1], repr(secret.encode())[2:-1], secret[:12]):
            assert form not in text


def refused(secured, t, model, *flags, kind="SCRAM-SHA-512"):
    """What a worker says that Kafka refuses, or that does not trust Kafka."""
    given = dict(flag.split("=", 1) for flag in (*t.flags, *secured.flags(kind), *flags))
    said = refusal(model, *(f"{name}={value}" for name, value in given.items() if value))
    no_secret_in(said)
    return said


def refusal(model, *flags):
    # For a Kafka that is away it would wait for longer than the test does.
    with serving("--model", model, *flags, "--broker-timeout-seconds=600") as worker:
        code, log = worker.end(signum=None)
    assert code == 1 and "Traceback" not in log, log
    last = log.splitlines()[-1]
    assert last.startswith("tidecast: ")
    return last


@pytest.mark.parametrize("kind", ["SCRAM-SHA-512", "PLAIN"])
def test_a_wrong_password_is_refused_with_the_user_and_what_to_check(secured, t, model, kind):
    said = refused(secured, t, model, f"--kafka-password-file={secured.files.wrong_password}", kind=kind)
    assert f"refuses the user 'alice' with {kind}: the name or the password is wrong" in said
    assert "(Authentication failed" in said and "Error" not in said  # Kafka's words, not the library's
    assert "Check --kafka-username, --kafka-password-file and --sasl-mechanism" in said


def test_a_mechanism_that_kafka_does_not_take_is_refused(secured, t, model):
    assert "does not accept SCRAM-SHA-256" in refused(secured, t, model, "--sasl-mechanism=SCRAM-SHA-256")


def test_a_kafka_whose_authority_is_not_trusted_is_refused(secured, t, model):
    said = refused(secured, t, model, f"--tls-ca-file={secured.files.other_ca}")
    assert f"the certificate of Kafka at {secured.sasl} is not trusted" in said and "--tls-ca-file" in said
    assert "is not trusted" in refused(secured, t, model, "--tls-ca-file=")  # the machine's own authorities


def test_a_missing_client_certificate_is_refused(secured, t, model):
    nothing = ("--tls-cert-file=", "--tls-key-file=", "--tls-key-password-file=")
    said = refused(secured, t, model, *nothing, kind="mTLS")
    assert "want" in said and "client certificate" in said and "--tls-cert-file" in said


def test_a_client_certificate_of_an_authority_that_kafka_does_not_trust_is_refused(secured, t, model):
    strange = (f"--tls-cert-file={secured.files.strangers}", "--tls-key-file=", "--tls-key-password-file=")
    said = refused(secured, t, model, *strange, kind="mTLS")
    assert f"refuses our certificate {secured.files.strangers}" in said


def test_a_kafka_under_a_name_that_its_certificate_does_not_have_is_refused(secured, t, model):
    address = secured.sasl.replace("localhost", "127.0.0.1")
    said = refused(secured, t, model, f"--bootstrap-servers={address}")
    assert f"the certificate of Kafka at {address} is for another name" in said and "127.0.0.1" in said


def test_a_broker_that_gives_itself_another_name_than_its_certificates_is_refused(secured, t, model):
    flags = (f"--bootstrap-servers={secured.misnamed}", "--security-protocol=SSL", f"--tls-ca-file={secured.files.ca}")
    said = refusal(model, *t.flags, *flags)
    assert "is for another name" in said and "127.0.0.1" in said and "advertised.listeners" in said


def test_a_kafka_that_starts_later_also_refuses_a_wrong_password(secured, t, model):
    """A proxy in its place, whose port nobody listens on at first."""
    port = free_port()
    flags = dict(flag.split("=", 1) for flag in (*t.flags, *secured.flags("PLAIN")))
    flags["--bootstrap-servers"] = f"localhost:{port}"
    flags["--kafka-password-file"] = secured.files.wrong_password
    with serving("--model", model, *(f"{name}={value}" for name, value in flags.items())) as worker:
        worker.wait_for("looking for Kafka", lambda: "looking for Kafka" in worker.log)
        time.sleep(2)
        assert worker.process.poll() is None, "it waits"
        with forwarding(port, secured.sasl):
            code, log = worker.end(signum=None)
    assert code == 1 and "refuses the user 'alice' with PLAIN" in log.splitlines()[-1], log


@contextmanager
def forwarding(port, to):
    """Whoever connects to `port` speaks with `to`."""
    host, _, far = to.partition(":")

    def pump(source, sink):
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept():
        with suppress(OSError):
            while True:
                near, _ = server.accept()
                there = socket.create_connection((host, int(far)))
                for ends in ((near, there), (there, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield


def test_tls_to_a_port_without_is_refused(secured, t, model):
    said = refused(secured, t, model, f"--bootstrap-servers={secured.open}")
    assert "speak TLS on this port" in said


def test_no_tls_to_a_port_with_it_is_refused(secured, t, model):
    said = refusal(model, *t.flags, f"--bootstrap-servers={secured.sasl}")
    assert "it may want TLS" in said and "--security-protocol SSL" in said


def rights_of_the_page(t):
    """`(kind, name, operation)` of all that docs/security.md says that a worker needs."""
    rights = re.findall(r"^\| (TOPIC|GROUP|TRANSACTIONAL_ID) \| (.*) \| (.*) \|$", PAGE.read_text("utf-8"), re.M)
    names = {"input": t.readings, "output": t.forecasts, "dead letters": t.dead, "changelog": t.states}
    names |= {"--group": t.group, "names that begin with --group (prefixed)": f"{t.group}*"}
    return [
        (kind, names[name], operation)
        for kind, which, operations in rights
        for name in which.split(", ")
        for operation in operations.split(", ")
    ]


def limited(secured, t):
    """The flags of a worker that may do what the page says, and no more."""
    allowed = rights_of_the_page(t)
    assert len(allowed) > 6
    secured.allow(allowed)
    return [*t.flags, *secured.flags("SCRAM-SHA-512"), f"--kafka-username={LIMITED}"]


@pytest.mark.parametrize(
    ("which", "what"), [("readings", "ANY"), ("forecasts", "ANY"), ("dead", "ANY"), ("forecasts", "WRITE")]
)
def test_a_right_that_is_taken_away_ends_the_worker_and_is_named(secured, t, model, which, what):
    t.feed(3)
    with serving("--model", model, *limited(secured, t), "--broker-timeout-seconds=20") as worker:
        t.read(t.forecasts, t.steps * len(t.series))
        secured.take_away(getattr(t, which), what)
        t.feed(3)
        t.send([(0, b"s0-0", b"{")])
        code, log = worker.end(signum=None)
    said = log.splitlines()[-1]
    assert code == 1 and "Traceback" not in log, log
    assert getattr(t, which) in said, log
    assert len(log.splitlines()) < 60, log


def test_a_worker_needs_no_more_rights_than_the_page_says(secured, t, model):
    flags = limited(secured, t)
    for _ in range(2):  # the second restores
        t.feed(3)
        with serving("--model", model, *flags) as worker:
            t.read(t.forecasts, t.steps * len(t.series))
            code, log = worker.end()
        assert code == 0, log
    t.check()


def test_a_worker_whose_password_is_changed_ends_and_says_so_once_kafka_asks_again(secured, model):
    """With each client at the same time, since Kafka is started again for it."""
    secured.set_password(CHANGING, PASSWORD)
    login = [*secured.flags("SCRAM-SHA-512"), f"--kafka-username={CHANGING}", "--broker-timeout-seconds=40"]
    topics = [Counted(secured.open, 2, 3, client=client) for client in CLIENTS]
    with ExitStack() as running:
        workers = [running.enter_context(serving("--model", model, *each.flags, *login)) for each in topics]
        for worker in workers:
            worker.ready()
            worker.patience = 150.0  # kafka-python tells why it does not connect after each time limit, not before
        secured.set_password(CHANGING, "an0ther-password")
        secured.embedded.kill()  # it is back sooner than after a stop
        secured.embedded.start(print)
        ends = [worker.end(signum=None) for worker in workers]
    for each in topics:
        each.broker.close()
    for code, log in ends:
        assert code == 1 and f"refuses the user '{CHANGING}' with SCRAM-SHA-512" in log.splitlines()[-1], log


def test_a_missing_right_is_named(secured, t, model):
    said = refusal(model, *t.flags, *secured.flags("SCRAM-SHA-512"), f"--kafka-username={LIMITED}")
    assert t.readings in said, said


def examined(capsys, *flags):
    """The lines of `tidecast doctor` that say what is wrong, and all of them."""
    code = cli.main(["doctor", *flags])
    out = capsys.readouterr().out
    no_secret_in(out)
    lines = [line.partition("  ") for line in out.splitlines()]
    wrong = [text.strip() for state, _, text in lines if state == "wrong"]
    assert code == (1 if wrong else 0), out
    return wrong, out


@pytest.mark.parametrize("kind", KINDS)
def test_the_doctor_gets_in_with_each_kind_of_login(secured, t, capsys, kind):
    wrong, out = examined(capsys, *t.flags[1:], *secured.flags(kind))
    assert wrong == [] and "login: Kafka accepts the connection with TLS" in out


def test_the_doctor_says_a_wrong_password_as_a_start_does(secured, t, capsys):
    wrong_password = f"--kafka-password-file={secured.files.wrong_password}"
    wrong, out = examined(capsys, *t.flags[1:], *secured.flags("SCRAM-SHA-512"), wrong_password)
    assert len(wrong) == 1 and "login: " in wrong[0] and "refuses the user 'alice' with SCRAM-SHA-512" in wrong[0]
    wrong = examined(capsys, *t.flags[1:], f"--bootstrap-servers={secured.sasl}")[0]
    assert len(wrong) == 1 and "wants TLS: use --security-protocol SSL" in wrong[0]
    assert "version, rights, transactions" in out and "first correct what is wrong with: login" in out


def test_the_doctor_asks_for_no_more_rights_than_a_worker_and_names_each_that_is_missing(secured, t, capsys):
    flags = [*limited(secured, t), f"--bootstrap-servers={secured.sasl}"]
    t.feed(1)
    assert examined(capsys, *flags)[0] == []
    missing = examined(capsys, *flags, f"--group={t.group[::-1]}")[0]
    assert len(missing) == 2, missing
    command = f"kafka-acls.sh --bootstrap-server {secured.sasl} --add --allow-principal User:bob --operation"
    assert f"lacks READ on the group {t.group[::-1]}" in missing[0] and f"{command} Read --group" in missing[0]
    assert f"{command} Write --transactional-id {t.group[::-1]} --resource-pattern-type prefixed" in missing[1]
    secured.take_away(t.forecasts)
    secured.take_away(t.states)
    missing = examined(capsys, *flags)[0]
    assert len(missing) == 2, missing
    assert f"lacks WRITE on the topic {t.forecasts}" in missing[0]
    assert f"--operation Read --operation Write --operation DescribeConfigs --topic {t.states}" in missing[1]


def test_promote_needs_the_rights_of_the_page_and_names_the_topic_that_it_may_not_write(secured, t):
    decisions = f"decisions-{t.group}"
    t.broker.create_topic(decisions, 1)
    t.broker.create_topic(f"{decisions}-2", 1)
    reads = [("TOPIC", decisions, "READ"), ("TOPIC", t.readings, "READ"), ("GROUP", t.group, "READ")]
    secured.allow(reads)
    flags = [*secured.flags("SCRAM-SHA-512"), f"--kafka-username={LIMITED}", f"--client={t.client}"]
    where = [*flags, f"--input-topic={t.readings}", f"--group={t.group}", "--broker-timeout-seconds=20"]
    mine, other = f"--decisions-topic={decisions}", f"--decisions-topic={decisions}-2"
    model = "m@aaaaaaaaaaaa"
    assert tidecast("promote", "--list", *where, mine)[0] == 0
    for words in (["--list", other], [model, other], [model, mine]):
        code, out, log = tidecast("promote", *where, *words)
        assert code == 1 and not out and "Traceback" not in log, log
        assert decisions in log.splitlines()[-1], log
    secured.allow([("TOPIC", decisions, "WRITE")])
    assert tidecast("promote", model, *where, mine)[:2] == (0, f"{model} is to answer for {t.group}\n")


def test_the_doctor_looks_for_the_rights_of_the_page(t):
    asked = {(role, right) for role, rights in TOPIC_RIGHTS.items() for right in rights}
    settings = {t.readings: "input_topic", t.forecasts: "output_topic", t.dead: "dead_letter_topic"}
    settings[t.states] = "changelog_topic"
    page = rights_of_the_page(t)
    assert asked == {(settings[name], right) for kind, name, right in page if kind == "TOPIC"}
    assert {right for kind, _, right in page if kind == "GROUP"} == set(GROUP_RIGHTS)


def test_each_command_connects_with_the_same_flags(secured, t, model, tmp_path):
    flags = [*secured.flags("SCRAM-SHA-512"), f"--client={t.client}"]
    t.feed(1)
    t.live(model)
    topics = [f"--input-topic={t.readings}", f"--changelog-topic={t.states}", f"--group={t.group}"]
    output = run("topics", "list", *flags)
    assert t.readings in output
    assert "s0-0" in run("state", "list", *flags, *topics)
    sent = ["produce", "sine", "--series", "2", "--limit", "6", "--speed", "max", f"--input-topic={t.readings}"]
    run(*sent, *flags)
    assert len(t.read(t.readings, 12)) == 12


def test_the_live_page_connects_with_the_same_flags_and_is_refused_with_a_wrong_password(secured, t):
    t.feed(1)
    ours = [f"--client={t.client}", f"--input-topic={t.readings}", f"--output-topic={t.forecasts}", "--watch-port=0"]
    flags = [*ours, *secured.flags("SCRAM-SHA-512")]
    watch = Watch(*flags, "--log-level=debug")
    watch.until("its address", lambda: "url=http://" in watch.log)
    watch.until("its readings", lambda: watch.status()["series"])
    code, log = watch.end()
    assert code == 0
    no_secret_in(log)
    wrong = f"--kafka-password-file={secured.files.wrong_password}"
    code, log = Watch(*(flag for flag in flags if not flag.startswith("--kafka-password")), wrong).end(signum=None)
    assert code == 1 and "refuses the user 'alice'" in log.splitlines()[-1], log


def run(*words):
    """What a command printed that ended well."""
    code, out, log = tidecast(*words)
    assert code == 0, log
    no_secret_in(out + log)
    return out


def test_a_changelog_of_megabytes_comes_whole_over_tls(secured, client):
    port = connect(secured.sasl, client=client, timeout_s=30, security=secured.security())
    name = f"large-{client}-{time.time_ns()}"
    port.create_topic(name, 1)
    producer, sent = port.producer(), [bytes([i % 251]) * (100_000 + i) for i in range(100)]
    outgoing = OutgoingBatch(name)
    for value in sent:
        outgoing.append(b"k", value, partition=0)
    producer.produce(outgoing)
    producer.flush(30)
    producer.close()
    consumer, found = port.consumer(), []
    consumer.assign(name, {0: -2})
    deadline = time.monotonic() + 60
    while len(found) < len(sent) and time.monotonic() < deadline:
        found += consumer.poll(0.5, 1_000).values
    consumer.close()
    port.close()
    assert found == sent
