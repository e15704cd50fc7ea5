"""--max-series auto keeps a worker within its container's memory, also while two models have their states there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidecast.service.config.settings import Settings
from tidecast.service.memory_limit import MemoryLimit
from tidecast.service.state.capacity import RESERVED_BYTES, bytes_per_series, most_series

MB = 1 << 20


def container(megabytes: int) -> MemoryLimit:
    return MemoryLimit(megabytes * MB, Path("/"))


def test_auto_is_the_default_and_a_number_is_taken_as_it_is() -> None:
    assert Settings().max_series == "auto"
    assert most_series(2_000_000, 264, container(64)) == 2_000_000


@pytest.mark.parametrize("state", [1, 264, 4096])
@pytest.mark.parametrize("megabytes", [256, 512, 2048])
def test_states_of_two_models_fit_into_the_limit_with_what_a_worker_needs(megabytes: int, state: int) -> None:
    series = most_series("auto", state, container(megabytes))
    needed = 2 * series * bytes_per_series(state) + RESERVED_BYTES
    assert needed <= megabytes * MB
    assert series == 1_000_000 or needed + 2 * bytes_per_series(state) > megabytes * MB, "no room is wasted"


def test_a_large_machine_keeps_a_million_and_a_tiny_container_at_least_one() -> None:
    assert most_series("auto", 264, MemoryLimit(64 << 30)) == 1_000_000
    assert most_series("auto", 264, container(64)) == 1
