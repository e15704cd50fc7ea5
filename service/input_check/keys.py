"""Which values name the series that a reading belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tidecast.service.broker.port import Batch
from tidecast.service.input_check.survey import Leaf, path_text

_USUAL_NAMES = (  # the likeliest first
    r"(.*_)?(series|sensor|device|asset|meter|machine|equipment|thing|tag|station|probe|turbine|vehicle|pump|node|entity"
    r"|unit|instrument|signal|point|channel|resource|datasource|module|plc)_?(id|name|key|uid|uuid|no|nr|number|code"
    r"|serial|eui|urn|path|address)?|(.*_)?dev_?eui",
    r"serial(_?(no|number))?|mac(_?address)?|imei|hostname|host(_?name)?|instance|(service|data_set_writer)_?(name|id)"
    r"|topic|source|src|subject|(object|external|item|client)_?id|friendly_?name|bn|key|icao|pod|application_?uri",
    r"id|uid|uuid|name|location|place|room|site|plant|line|area|zone|building|city|region|customer|tenant|group|edge",
)
USUAL = [re.compile(text) for text in _USUAL_NAMES]
_OTHERS = re.compile(
    r"u|uom|(unit_?)?of_?measure(ment)?|units?|type|status|quality|state|op|kind|level|(spec_?|schema_?)?version"
    r"|data_?content_?type|currency|severity|(event|message|msg|data|sensor)_?type|format|encoding|snapshot|connector"
    r"|(content|trace|span|application|deduplication|correlation|message|schema|tenant)_?id|error|description"
)
_MOST_PARTS = 3


@dataclass(slots=True)
class KeyGuess:
    """Where the series' name is. An empty `table`: it is the record's key. `names`: it tells series apart."""

    table: dict[str, Any] = field(default_factory=dict)
    say: list[str] = field(default_factory=list)
    names: bool = True


def guess_key(leaves: Sequence[Leaf], batch: Batch, records: Sequence[int], times: Sequence[Any]) -> KeyGuess:
    """The likeliest name of a series.

    Args:
        leaves: all but the time.
        records: [rows] the record of each.
        times: [rows] of the readings: a series has one reading at a time.
    """
    keys = [batch.keys[record] for record in records]
    own = _of_record_keys(keys)
    candidates = _candidates(leaves, len(records))
    usual = [leaf for leaf in candidates if rank(leaf) < 2]
    if own is not None and usual and (own.names is False or _useless(keys, usual)):
        own = None
    if own is not None:
        if not own.table and candidates and rank(candidates[0]) < len(USUAL) and _doubled([keys], times) > 0.5:
            more = _parts(candidates, times)  # the key is that of several series
            if len(set(zip(*(map(str, leaf.values) for leaf in more), strict=True))) > len(set(keys)):
                return _table(more, leaves)
        own.names = True
        return own
    if not candidates:
        say = ["Records have no key that names a series, and no field that could: all are one series. Correct key."]
        return KeyGuess({"key": "@topic"}, say, names=False)
    return _table(_parts(candidates, times), leaves)


def _candidates(leaves: Sequence[Leaf], rows: int) -> list[Leaf]:
    """Leaves that can name a series, the likeliest first."""
    found = []
    for leaf in leaves:
        known, usual = [value for value in leaf.known if value != ""], rank(leaf)
        if not known or {"{", "}"} & {*leaf.path}:  # braces have a meaning in a key
            continue
        if len(known) < (0.5 if usual == 0 else 0.9) * rows or not all(isinstance(v, str | int) for v in known):
            continue
        if any(isinstance(value, bool) for value in known) or max(len(str(value)) for value in known) > 200:
            continue
        distinct = len(set(map(str, known)))
        if distinct > 0.9 * rows and rows > 4 and usual > 0:  # as many as readings: an id of the message
            continue
        if leaf.numeric and usual > 1 and leaf.word != "id":  # a number is a name only where that is usual
            continue
        if _OTHERS.fullmatch(leaf.word) or (not leaf.in_document and usual == len(USUAL)):
            continue
        found.append((usual, leaf.out, distinct == 1, len(leaf.place), leaf))
    return [each[-1] for each in sorted(found, key=lambda each: each[:-1])]


def rank(leaf: Leaf) -> int:
    """0 = its name is that of a series; 3 = its name says nothing."""
    if leaf.path.endswith("@name"):
        return 0
    return next((at for at, usual in enumerate(USUAL) if usual.fullmatch(leaf.word)), len(USUAL))


def _parts(candidates: Sequence[Leaf], times: Sequence[Any]) -> list[Leaf]:
    """The first, and as many more as it takes until a series has one reading at each time."""
    chosen = [candidates[0]]
    doubled = _doubled([leaf.values for leaf in chosen], times)
    for leaf in candidates[1:]:
        if not doubled or len(chosen) == _MOST_PARTS:
            break
        now = _doubled([*(each.values for each in chosen), leaf.values], times)
        if now < doubled - 0.05:
            chosen.append(leaf)
            doubled = now
    return chosen


def _doubled(parts: Sequence[Sequence[Any]], times: Sequence[Any]) -> float:
    """The share of readings whose series and time another has too."""
    pairs = list(zip(*([str(value) for value in part] for part in parts), times, strict=True))
    return 1 - len(set(pairs)) / max(1, len(pairs))


def _table(chosen: Sequence[Leaf], leaves: Sequence[Leaf]) -> KeyGuess:
    if len(chosen) == 1:
        return KeyGuess({"key": chosen[0].path})
    in_order = sorted(chosen, key=lambda leaf: (-leaf.out, leaves.index(leaf)))
    return KeyGuess({"key": "/".join(f"{{{leaf.path}}}" for leaf in in_order)})


def _of_record_keys(keys: Sequence[bytes | None]) -> KeyGuess | None:
    """The records' own keys as names of series; None where they cannot be."""
    there = [key for key in keys if key]
    if len(there) < 0.95 * len(keys) or not there:
        return None
    try:
        texts = [key.decode("utf-8") for key in there]
    except UnicodeDecodeError:
        return None
    if not all(text.isprintable() for text in texts):
        return None
    try:
        found = [json.loads(text) for text in texts] if texts[0][:1] in '{"[' else []
    except ValueError:
        found = []
    if found and all(isinstance(each, dict) for each in found):
        return _of_json_keys(found)
    if found and all(isinstance(each, str) for each in found):  # a text in quotes
        return KeyGuess({"key": "@key", "key_regex": '"(.*)"'})
    return KeyGuess({})


def _of_json_keys(found: Sequence[dict[str, Any]]) -> KeyGuess | None:
    inner = [each["payload"] if isinstance(each.get("payload"), dict) and "schema" in each else each for each in found]
    before = "@key.payload" if inner[0] is not found[0] else "@key"
    names = [name for name, value in inner[0].items() if isinstance(value, str | int) and not isinstance(value, bool)]
    paths = [
        f"{before}.{text}" for name in names[:_MOST_PARTS] if (text := path_text((name,))) and not {"{", "}"} & {*text}
    ]
    if not paths:
        return None
    key = paths[0] if len(paths) == 1 else "/".join(f"{{{path}}}" for path in paths)
    return KeyGuess({"key": key}, names=names != ["id"])  # the number of a row of a table names no series


def _useless(keys: Sequence[bytes | None], usual: Sequence[Leaf]) -> bool:
    """True where each record has another key, or all the same, while a field that is usual as a name has several."""
    distinct = len(set(keys))
    names = [len({str(value) for value in leaf.known}) for leaf in usual]
    if distinct == len(keys) and len(keys) > 4:
        return any(2 * count <= len(keys) for count in names)
    return distinct == 1 and any(count > 1 for count in names)
