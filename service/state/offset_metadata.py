"""The metadata of a committed offset: which states the changelog has for it.

`s=<snapshot offset> f=1 l=<layout> m=<model id>`. The id may contain spaces, so it comes last. `f=1`: states of
the partition were written, so an empty changelog means that they were lost. Where the worker runs shadows too, the
model is the champion, and `g=<hash>,<hash>` before `l` has the hashes, as in ids, of all models of the group;
`o=<hash>` after it names the model of the states that were written before there were shadows, and `d=<number>` the
decision that made the model the champion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(
    r"s=(\d+)(?P<flushed> f=1)?(?: g=(?P<members>[0-9a-f,]+)(?: o=(?P<origin>[0-9a-f]+))?(?: d=(?P<decision>\d+))?)?"
    r"(?: l=(?P<layout>[0-9a-f]{16}) m=(?P<model>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed for a partition."""

    offset: int  # of the next record to read
    snapshot: int | None = None  # every reading before it is included in a state of the changelog; None = unknown
    flushed: bool = False
    layout: bytes | None = None  # of those states, see `model.compatibility.layout_hash`
    model: str | None = None  # id of the model that made them, and has answered
    members: tuple[str, ...] = ()  # hashes of all models whose states these are; none = the one model's
    origin: str | None = None  # hash of the model of states in records that name none, from before there were others
    decision: int | None = None  # number of the one that made the model the champion; None = nobody decided

    @property
    def maker(self) -> str | None:
        """Hash of the model of states in records that name none."""
        if self.members or self.model is None:
            return self.origin
        return self.model.rpartition("@")[2]

    @property
    def text(self) -> str:
        """The metadata for Kafka."""
        if self.snapshot is None:
            return ""
        more = (" o=" + self.origin if self.origin else "") + ("" if self.decision is None else f" d={self.decision}")
        group = f" g={','.join(self.members)}{more}" if self.members else ""
        made = f" l={self.layout.hex()} m={self.model}" if self.layout is not None and self.model is not None else ""
        return f"s={self.snapshot}{' f=1' * self.flushed}{group}{made}"

    @classmethod
    def parse(cls, offset: int, text: str) -> Committed:
        """Read the metadata; text from another program is ignored."""
        found = _TEXT.fullmatch(text)
        if found is None:
            return cls(offset)
        layout = bytes.fromhex(found["layout"]) if found["layout"] else None
        members = tuple(found["members"].split(",")) if found["members"] else ()
        flushed = found["flushed"] is not None
        decision = int(found["decision"]) if found["decision"] else None
        return cls(offset, int(found[1]), flushed, layout, found["model"], members, found["origin"], decision)
