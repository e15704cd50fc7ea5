"""How much memory this process may use: the limit of its container (cgroup v2 or v1), else the machine's memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OWN_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# file names in cgroup v2, and in v1: the limit, what is in use, and of that the files' pages that the kernel can drop
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit in bytes, and whose it is; `folder` is the cgroup's, None where the machine's memory is the limit."""

    bytes: int
    folder: Path | None = None

    @property
    def whose(self) -> str:
        """What sets the limit, in words."""
        return "the machine's memory" if self.folder is None else "the container's limit"

    def left(self) -> int | None:
        """Bytes that the container may still use; None without a limit of its own."""
        if self.folder is None:
            return None
        _, current, cache = _V2 if (self.folder / _V2[0]).exists() else _V1
        used = _number(self.folder / current)
        found = re.search(rf"^{cache} (\d+)$", _text(self.folder / "memory.stat"), re.MULTILINE)
        return None if used is None else self.bytes - used + (int(found[1]) if found else 0)


def memory_limit(own_groups: Path = _OWN_GROUPS, mount: Path = _MOUNT) -> MemoryLimit:
    """The lowest limit that applies to this process."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [MemoryLimit(machine)]
    for folder, name in _folders(own_groups, mount):
        limit = _number(folder / name)
        if limit is not None:  # "max" in v2, and a huge number in v1, is no limit
            found.append(MemoryLimit(limit, folder))
    return min(found, key=lambda each: each.bytes)


def _folders(own_groups: Path, mount: Path) -> Iterator[tuple[Path, str]]:
    """The folders of this process's cgroup and of all around it, each with the name of the file of its limit.

    In a container the path is often the host's, and only the mount itself is there: a missing folder has no number.
    """
    for line in _text(own_groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (mount / "memory", _V1[0]) if controllers else (mount, _V2[0])
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            yield folder, name
            if folder == root:
                break


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() else None
