"""Series whose clock was ahead, as the log names them, and across a newer model."""

import logging
import time

from tests.support.models import counting_models
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.state.record import AheadClock
from tidecast.service.worker.emitted_batches import RecoveryLog
from tidecast.service.worker.hand_over import move_series
from tidecast.service.worker.served_model import ServedModel


def test_the_log_names_each_series_that_starts_again_but_not_a_thousand_in_a_minute(caplog):
    caplog.set_level(logging.WARNING)
    now = [0.0]
    said = RecoveryLog(lambda: now[0])
    said.say([b"a"])
    said.say([b"s%d" % i for i in range(1_000)])
    said.say([b"b"])
    assert [r.key for r in caplog.records if "it starts again" in r.message] == ["a", *(f"s{i}" for i in range(9))]
    assert len(caplog.records) == 11, "and one line says that more are only counted"
    now[0] = 60.0
    said.say([b"c"])
    assert caplog.records[-1].key == "c"


def test_a_newer_model_takes_over_what_contradicts_a_series(tmp_path):
    models = [ServedModel(Settings(max_series=10), [Model.load(path)], time.monotonic)
              for path in counting_models(tmp_path, 2)]  # fmt: skip
    older, newer = (served.store for served in models)
    older.add_all([b"a", b"b"], [0, 0])
    newer.add(b"other", 1)
    older.ahead[older.find(b"b")] = clock = AheadClock(1, 2, 3, 4)
    move_series(*models, 0)
    assert newer.ahead == {newer.find(b"b"): clock}
    newer.revoke({0})
    assert not newer.ahead, "the slot may be another series' next"
