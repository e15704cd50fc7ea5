"""The starter that `tidecast input check` proposes."""

from __future__ import annotations

import pytest

from tests.unit.input_check.topics import MACHINES, T0, records, rows
from tidecast.service.input.config import parse_input
from tidecast.service.input_check.proposal import good_rows, mapped_by, propose
from tidecast.service.input_check.starter import starter_command


def proposed(step_ms: float, readings: int = len(MACHINES)) -> list[str]:
    def make(i: int, t: int) -> dict[str, object]:
        moment = T0 + round(i // 3 * step_ms)
        return {"ts": moment, "temp": 20.5 + i} | ({"hum": 40} if i % 2 else {})

    batch = records(rows(make, readings), MACHINES[:readings])
    mapped = mapped_by(parse_input(dict(propose(batch).table)), batch, None)
    return list(starter_command(mapped, good_rows(mapped)))


@pytest.mark.parametrize(
    ("step_ms", "step", "horizon"), [(300_000, "5min", "12h"), (3_650_000, "1h", "1d"), (1_000, "1s", "1min")]
)
def test_step_features_and_horizon_are_those_of_the_readings(step_ms, step, horizon):
    (line,) = proposed(step_ms)
    assert f"tidecast starter --step {step} --features " in line
    assert f"--target temp --horizon {horizon} " in line and "hum" in line


def test_nothing_is_proposed_where_the_step_is_not_seen():
    assert proposed(3_600_000, readings=3) == []
    assert proposed(100) == []
