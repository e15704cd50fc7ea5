"""Parts of readings in the long form, on a real Kafka, with workers that are killed while some wait."""

import signal

import pytest

from tests.chaos.joined import TABLE, JoinedReadings, parts
from tests.chaos.topics import Names
from tests.chaos.verifier import verify
from tests.support.models import counting_model
from tests.support.serving import serving
from tidecast.service.model.session import Model

PARTITIONS, SERIES, RECORDS = 2, 8, 3_000


@pytest.mark.parametrize("client", ["confluent", "kafka-python"])
def test_the_long_form_is_answered_as_in_one_run_although_two_workers_are_killed(topics, tmp_path, client):
    t, folder = topics(PARTITIONS), counting_model(tmp_path)
    model, table, made = Model.load(folder), tmp_path / "input.toml", parts(Model.load(folder).spec, SERIES, seed=11)
    table.write_text(TABLE)
    flags = ["--model", folder, "--input", table, "--changelog-seconds", 3, "--max-poll-records", 50, *t.flags]

    def send(records):
        t.send([(int(key[-1:]) % PARTITIONS, key, value) for key, value in (next(made) for _ in range(records))])

    def committed():
        return sum(known[0] for known in t.committed().values() if known is not None)

    for until in (RECORDS // 3, 2 * RECORDS // 3):
        send(RECORDS // 3)
        with serving(*flags) as worker:
            # Not all of it is committed: what is in memory dies with the process.
            worker.wait_for("some commits", lambda until=until: committed() > until - RECORDS // 3 + 100)
            worker.end(signal.SIGKILL)
    send(RECORDS // 3)
    with serving(*flags) as worker:
        worker.wait_for("the rest", lambda: committed() >= RECORDS)
        worker.wait_for("the counts", lambda: worker.metric("tidecast_parts_total") > 0)
        code, _ = worker.end()
    assert code == 0
    names = Names(t.readings, t.forecasts, t.dead, t.states)
    report = verify(t.broker, [model], names, read=JoinedReadings, rtol=0, atol=0)
    assert report.ok, report
    assert report.forecasts > RECORDS / 3 and report.states == SERIES
