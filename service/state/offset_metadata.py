"""The text beside a committed offset: what the states in the changelog are, as of that offset.

`s=<snapshot offset> f=1 l=<layout> m=<model id>`. The id may hold spaces, so it comes last. `f=1`: states of the
partition were written, so an empty changelog is a loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"s=(\d+)(?P<flushed> f=1)?(?: l=([0-9a-f]{16}) m=(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed for a partition."""

    offset: int  # to go on from
    snapshot: int | None = None  # every reading before it is inside some state of the changelog; None = not said
    flushed: bool = False
    layout: bytes | None = None  # of those states, see `changelog.layout_hash`
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
        """What `text` said; a text that is not ours says nothing."""
        found = _TEXT.fullmatch(text)
        if found is None:
            return cls(offset)
        layout = bytes.fromhex(found[3]) if found[3] else None
        return cls(offset, int(found[1]), found["flushed"] is not None, layout, found[4])
