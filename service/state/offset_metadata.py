"""The metadata of a committed offset: which states the changelog has for it.

`s=<snapshot offset> f=1 l=<layout> m=<model id>`. The id may contain spaces, so it comes last. `f=1`: states of
the partition were written, so an empty changelog means that they were lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"s=(\d+)(?P<flushed> f=1)?(?: l=([0-9a-f]{16}) m=(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed for a partition."""

    offset: int  # of the next record to read
    snapshot: int | None = None  # every reading before it is included in a state of the changelog; None = unknown
    flushed: bool = False
    layout: bytes | None = None  # of those states, see `model.compatibility.layout_hash`
    model: str | None = None  # id of the model that made them

    @property
    def text(self) -> str:
        """The metadata for Kafka."""
        if self.snapshot is None:
            return ""
        made = f" l={self.layout.hex()} m={self.model}" if self.layout is not None and self.model is not None else ""
        return f"s={self.snapshot}{' f=1' * self.flushed}{made}"

    @classmethod
    def parse(cls, offset: int, text: str) -> Committed:
        """Read the metadata; text from another program is ignored."""
        found = _TEXT.fullmatch(text)
        if found is None:
            return cls(offset)
        layout = bytes.fromhex(found[3]) if found[3] else None
        return cls(offset, int(found[1]), found["flushed"] is not None, layout, found[4])
