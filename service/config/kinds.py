"""What a setting's value may be, besides numbers and choices."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

_TOPIC, _SHA256 = r"^(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}$", "^([0-9a-fA-F]{64})?$"
_TOPIC_OR_NONE = r"^(?!\.{1,2}$)[A-Za-z0-9._-]{0,249}$"
PATTERNS = {  # and how an error says it
    _TOPIC: "be a topic name: at most 249 letters, digits, '.', '_' and '-'",
    _TOPIC_OR_NONE: "be a topic name: at most 249 letters, digits, '.', '_' and '-'",
    _SHA256: "be 64 hexadecimal digits, as `sha256sum model.onnx` prints them",
}

Text = Annotated[str, Meta(min_length=1)]
Topic = Annotated[str, Meta(pattern=_TOPIC)]
TopicOrNone = Annotated[str, Meta(pattern=_TOPIC_OR_NONE)]
Sha256 = Annotated[str, Meta(pattern=_SHA256)]
Port = Annotated[int, Meta(ge=0, le=65_535)]


def about(group: str, help: str, *, ge: float | None = None, le: float | None = None) -> Meta:
    """The group, the help text and the limits of a setting."""
    return Meta(description=help, ge=ge, le=le, extra={"group": group})
