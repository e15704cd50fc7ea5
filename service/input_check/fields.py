"""Which values are features, and whether each record has only one of them, with its name (the long form)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidecast.service.input.config import MISSING_TEXTS
from tidecast.service.input.paths import MISSING
from tidecast.service.input_check.keys import USUAL, rank
from tidecast.service.input_check.survey import Leaf

MOST_FIELDS = 60  # more are not written one by one
_METRIC = re.compile(
    r"(.*_)?(metric|measure(ment)?|measurand|param(eter)?|field|property|variable|quantity|attribute|characteristic"
    r"|capability|register|observable|phenomenon|kpi)_?(name|id|type|code)?"
    r"|sensor_?type|data_?type|type|name|n|item|signal|channel|tag|point|label|display_?name|key"
)
_SURE = re.compile(r"(metric|measurand|measure(ment)?|param(eter)?|property|quantity)_?(name|id)?")
_VALUE = re.compile(
    r"(v|val|value|reading|measurement|result|number|num|data|observation|raw|payload|state)|.*_value|value_\w*"
    r"|(as_)?(double|float|int|long|num)"
)
_NO_FEATURE = re.compile(
    r"(.*_)?(id|uid|uuid|seq|seq(uence)?_?(no|num|number|id)?|qos|version|nonce|partition|offset|pid|port|crc|checksum"
    r"|index|idx|retain|f_?cnt|f_?port|dev_?addr|serial|revision|quality|lsn|txid|order|alias|error|error_code|status"
    r"|severity(_number)?|data_?type|dup|code|type)|(item|node|tag|host|msg|device|sensor)id|ns|specversion|q|dr|adr|epoch|year|u|unit"
)
_HOLDS_ALL = re.compile(r"fields|values|data|payload|readings?|measurements?|body|message")
_NO_PARENT = re.compile(
    r"errors?|meta|metas|(.*_)?meta_?data(_?version)?|schema|_?links|(rx|tx)_?info|previous|before|desired"
)


@dataclass(slots=True)
class FieldsGuess:
    """The features. `table`: what an [input] table says of them."""

    table: dict[str, Any] = field(default_factory=dict)
    name: Leaf | None = None  # long form: what names the feature
    left: list[str] = field(default_factory=list)  # paths of numbers that are not proposed
    absent: list[str] = field(default_factory=list)  # features of the model that no record has


def guess_fields(
    leaves: Sequence[Leaf],
    is_time: Callable[[Leaf], bool],
    keys: Sequence[bytes | None],
    features: Sequence[str] | None,
) -> FieldsGuess:
    """The features of these rows; `keys`: [rows] of their records; `features`: of a model, None = all numbers."""
    wanted = set(features or ())
    numbers = [leaf for leaf in leaves if leaf.in_document and leaf.numeric and not is_time(leaf)]
    here: list[Leaf] = []
    usual: list[Leaf] = []
    for out in sorted({leaf.out for leaf in numbers}):
        here = [leaf for leaf in numbers if leaf.out == out]
        usual = [leaf for leaf in here if _may_be_feature(leaf) or wanted.intersection((leaf.path, *leaf.place[-1:]))]
        if usual:
            break
    if not usual:
        return FieldsGuess(left=[leaf.path for leaf in here], absent=list(features or ()))
    left = [leaf.path for leaf in here if leaf not in usual]
    if (long := _long(leaves, usual, keys)) is not None:
        value, name = long
        given = {str(each) for each in name.known}
        absent = [each for each in features or () if each not in given]
        return FieldsGuess({"name": name.path, "value": value}, name, left, absent)
    named = dict(zip(names_of(usual), usual, strict=True))
    if features is not None:
        matched = {name: leaf for name in features if (leaf := _match(name, named)) is not None}
        left += [leaf.path for leaf in usual if leaf not in matched.values()]
        named = matched
    absent = [name for name in features or () if name not in named]
    table: dict[str, Any] = {"fields": {name: leaf.path for name, leaf in named.items()}} if named else {}
    if len(named) > MOST_FIELDS and features is None:
        parent, parents = usual[0].path.rpartition(".")[0], {leaf.place[:-1] for leaf in usual}
        table = {"fields": parent} if len(parents) == 1 and parent and '"' not in usual[0].path else {}
    return FieldsGuess(table, None, left, absent)


def names_of(leaves: Sequence[Leaf]) -> list[str]:
    """A name for each: its last step, with as many steps before it as make all of them different."""
    steps = [_steps(leaf) for leaf in leaves]
    names = ["_".join(each[-1:]) for each in steps]
    for length in range(2, 9):
        again = {name for name in names if names.count(name) > 1}
        if not again:
            break
        names = ["_".join(s[-length:]) if name in again else name for name, s in zip(names, steps, strict=True)]
    counts: dict[str, int] = {}
    for at, name in enumerate(names):
        counts[name] = counts.get(name, 0) + 1
        names[at] = name if counts[name] == 1 else f"{name}_{counts[name]}"
    return ["ts_value" if name == "ts" else name for name in names]


def _steps(leaf: Leaf) -> list[str]:
    """Its steps as words; a last `value` gives way to what it is the value of."""
    steps = [str(step) for step in leaf.place]
    if len(steps) > 1 and isinstance(leaf.place[-1], int) and isinstance(leaf.place[-2], str):
        steps[-2:] = [f"{steps[-2]}_{steps[-1]}"]
    last = [step.lower() for step in steps[-2:]]
    if len(last) > 1 and last[1] in ("v", "val", "value") and not _HOLDS_ALL.fullmatch(last[0]):
        steps.pop()
    if len(steps) == 1 and isinstance(leaf.place[0], int):
        steps = [f"value_{steps[0]}"]
    return steps or ["value"]  # the whole item


def _match(feature: str, named: dict[str, Leaf]) -> Leaf | None:
    """The leaf of a model's feature: its name, however it is written, or its path."""
    for name, leaf in named.items():
        if feature in (name, leaf.path, *leaf.place[-1:]):
            return leaf
    plain = _plain(feature)
    return next((leaf for name, leaf in named.items() if plain in (_plain(name), _plain(leaf.path))), None)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def _may_be_feature(leaf: Leaf) -> bool:
    """False for what numbers things rather than measures: ids, versions, counters of messages."""
    parents = [step for step in leaf.place[:-1] if isinstance(step, str)]
    if _NO_FEATURE.fullmatch(leaf.word) or any(_NO_PARENT.fullmatch(step.lower()) for step in parents):
        return False
    whole = not any(isinstance(value, float) for value in leaf.known)
    return not (whole and rank(leaf) == 0 and leaf.word not in ("channel", "point", "signal"))


def _long(leaves: Sequence[Leaf], numbers: list[Leaf], keys: Sequence[bytes | None]) -> tuple[str, Leaf] | None:
    """(path of the value, the leaf with its name) where each row has one value and its name."""
    value = _one_value(numbers)
    if value is None:
        return None
    texts = [leaf for leaf in leaves if leaf.textual and leaf.out == numbers[0].out and _METRIC.fullmatch(leaf.word)]
    texts = [leaf for leaf in texts if len(leaf.known) > 0.9 * len(leaf.values) and max(map(len, leaf.known)) <= 120]
    for name in sorted(texts, key=lambda leaf: not _SURE.fullmatch(leaf.word)):
        distinct, sure = len(set(name.known)), _SURE.fullmatch(name.word) is not None
        few = distinct <= max(4, 0.5 * len(name.values)) or len(name.values) <= 20
        if (sure or (distinct > 1 and few)) and not _names_the_series(name, leaves, keys, sure):
            return value, name
    return None


def _names_the_series(name: Leaf, leaves: Sequence[Leaf], keys: Sequence[bytes | None], sure: bool) -> bool:
    """True where nothing else tells series apart, or each key has one name only."""
    theirs: dict[bytes, set[str]] = {}
    for key, text in zip(keys, name.values, strict=True):
        if key:
            theirs.setdefault(key, set()).add(str(text))
    if sum(map(bool, keys)) > 0.9 * len(keys):
        if any(len(names) > 1 for names in theirs.values()):
            return False
        if not sure:
            return True
    others = [leaf for leaf in leaves if leaf is not name and rank(leaf) < len(USUAL)]
    others = [leaf for leaf in others if not any(isinstance(value, float | bool) for value in leaf.known)]
    return not any(len(leaf.known) > 0.9 * len(leaf.values) for leaf in others)


def _one_value(numbers: Sequence[Leaf]) -> str | None:
    """The path of the only value of each row: one leaf, or several of which a row has one."""
    if len(numbers) == 1:
        return numbers[0].path
    if len(numbers) > 6 or not all(_VALUE.fullmatch(leaf.word) for leaf in numbers):
        return None
    for row in range(len(numbers[0].values)):
        there = [v for leaf in numbers if (v := leaf.values[row]) is not MISSING and v is not None]
        if len([v for v in there if not (isinstance(v, str) and v.lower() in MISSING_TEXTS)]) > 1:
            return None
    return " | ".join(leaf.path for leaf in numbers)
