"""The table that is proposed for each shape that real topics have, from the few records that its file has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.input.test_shapes import SHAPES, _batch, _outcome
from tidecast.service.input.config import known_by, parse_input, preset_names, proposed_with
from tidecast.service.input.mapping import InputMapper
from tidecast.service.input_check.proposal import mapped_by, propose

WITH_READINGS = sorted(
    name for name, shape in SHAPES.items() if any("readings" in record for record in shape.get("records", []))
)
# The same series, times and values as by the table that a person wrote for the shape, under whatever names.
AS_BY_A_PERSON = 37


def values(readings: list[dict[str, Any]]) -> list[tuple[str, int, set[float]]]:
    found = [{name: value for name, value in each.items() if name not in ("series", "ts")} for each in readings]
    rows = [
        (each["series"], each["ts"], {round(float(value), 3) for value in numbers.values()})
        for each, numbers in zip(readings, found, strict=True)
    ]
    return sorted(rows, key=lambda row: row[:2])


def outcome(name: str) -> tuple[int, bool]:
    """(records with readings, whether each is what a person's table reads)."""
    found = SHAPES[name]["records"]
    batch = _batch(found)
    proposal = propose(batch)
    if not proposal.complete:
        return 0, False
    mapped, read, same = mapped_by(proposal.config, batch, None), 0, True
    for at, record in enumerate(found):
        got, wanted = values(_outcome(mapped, at).get("readings", [])), values(record.get("readings", []))
        read += bool(got and wanted)
        alike = len(got) == len(wanted) and all(
            a[:2] == b[:2] and b[2] <= a[2] for a, b in zip(got, wanted, strict=True)
        )
        same = same and (alike or not wanted)
    return read, same


@pytest.mark.parametrize("name", WITH_READINGS)
def test_the_table_that_is_proposed_for_a_shape_reads_it(name: str) -> None:
    assert outcome(name)[0] > 0


def test_most_proposals_are_what_a_person_wrote() -> None:
    same = [name for name in WITH_READINGS if outcome(name)[1]]
    assert len(same) >= AS_BY_A_PERSON, same


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_is_recognised_by_its_own_shapes_and_by_no_other(preset: str) -> None:
    assert known_by(preset), "say in its file by which paths it is known"
    found = {}
    for name in WITH_READINGS:
        proposal = propose(_batch(SHAPES[name]["records"]))
        if proposal.table.get("preset") == preset:
            found[name] = SHAPES[name]["input"].get("preset")
    assert preset in found.values(), "none of its shapes is recognised"
    assert set(found.values()) <= {preset, None}
    if proposed_with(preset):
        InputMapper(parse_input({"preset": preset} | proposed_with(preset)), None)
