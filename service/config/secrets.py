"""Secrets: passwords that only the library which needs them can read."""

from __future__ import annotations

import json

MASK = "***"
_SHORTEST = 4  # a shorter text is part of too many other words to be masked everywhere

_known: set[str] = set()  # every form in which a secret of this process may appear in a text


class Secret:
    """A password. Only `reveal` gives its text; printed, logged or in a traceback it is `***`."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text
        if len(text) >= _SHORTEST:
            # Libraries print what they send: as text, as repr, as bytes; we, as JSON.
            _known.update((text, repr(text)[1:-1], repr(text.encode())[2:-1], json.dumps(text)[1:-1]))

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return MASK if self._text else ""

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"


def masked(text: str) -> str:
    """`text` with every secret of this process replaced by `***`."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text
