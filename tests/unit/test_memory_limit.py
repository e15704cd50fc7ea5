"""The memory limit is the lowest of all cgroups around the process, of either version, and of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidecast.service.memory_limit import MemoryLimit, memory_limit

MB = 1 << 20


def written(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def found(tmp_path: Path, own_groups: str) -> MemoryLimit:
    (tmp_path / "own").write_text(own_groups)
    return memory_limit(tmp_path / "own", tmp_path / "cgroup")


def test_the_limit_of_a_container_is_found_in_both_versions_of_cgroups(tmp_path: Path) -> None:
    written(tmp_path / "cgroup", memory__max=512 * MB)
    assert found(tmp_path, "0::/\n").bytes == 512 * MB
    written(tmp_path / "cgroup/memory", memory__limit_in_bytes=256 * MB)
    limit = found(tmp_path, "4:cpu,memory:/docker/abc\n1:cpu:/x\n0::/\n")  # the path is the host's, and not there
    assert limit.bytes == 256 * MB and limit.whose == "the container's limit"


def test_the_lowest_limit_around_the_process_counts(tmp_path: Path) -> None:
    written(tmp_path / "cgroup/a/b/c", memory__max="max")
    written(tmp_path / "cgroup/a/b", memory__max=300 * MB)
    written(tmp_path / "cgroup/a", memory__max=400 * MB)
    assert found(tmp_path, "0::/a/b/c\n") == MemoryLimit(300 * MB, tmp_path / "cgroup/a/b")


@pytest.mark.parametrize("unlimited", ["max", 2**63 - 4096], ids=["v2", "v1"])
def test_without_a_limit_it_is_the_machine_s_memory(tmp_path: Path, unlimited: object) -> None:
    written(tmp_path / "cgroup", memory__max=unlimited)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found(tmp_path, "0::/\n") == MemoryLimit(machine)
    assert found(tmp_path, "").left() is None
    assert memory_limit(tmp_path / "none", tmp_path / "none") == MemoryLimit(machine), "as on macOS"


def test_what_is_left_does_not_count_the_pages_of_files(tmp_path: Path) -> None:
    written(tmp_path / "2", memory__max=500, memory__current=400, memory__stat="anon 1\ninactive_file 150")
    written(
        tmp_path / "1",
        memory__limit_in_bytes=500,
        memory__usage_in_bytes=400,
        memory__stat="inactive_file 7\ntotal_inactive_file 50",
    )
    assert [MemoryLimit(500, tmp_path / version).left() for version in "21"] == [250, 150]
