"""An [input] table for a topic that nobody has described: what its newest records can be read with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch
from tidecast.service.input.canonical import ReadingDecoder
from tidecast.service.input.columns import Columns, Level
from tidecast.service.input.config import InputConfig, key_paths, known_by, parse_input, preset_names, proposed_with
from tidecast.service.input.mapping import InputMapper, MappedBatch
from tidecast.service.input.paths import MISSING, parse_paths
from tidecast.service.input.rejected import RecordRejected, check_key
from tidecast.service.input_check.fields import FieldsGuess, guess_fields
from tidecast.service.input_check.formats import guess_format
from tidecast.service.input_check.joins import guess_join
from tidecast.service.input_check.keys import guess_key
from tidecast.service.input_check.survey import all_leaves, survey
from tidecast.service.input_check.times import NO_TIME, TimeGuess, time_of

_MOST_RECORDS = 300  # looked at
_MOST_ATTEMPTS = 12
_DEEPEST = 4  # lists in lists
_MOST_NAMED = 12  # in a sentence
_SOME = 0.2


@dataclass(slots=True)
class Proposal:
    """A table, and what there is to say about it.

    Attributes:
        table: names and values, as they stand in [input].
        say: sentences for the person who will use it.
        complete: False where something must be filled in before it can read anything.
        share: of the records looked at, those that it reads; [0, 1].
        cells: how many values it reads from them.
        features: how many it finds.
        names: it has a name for each series.
        absent: features of the model that it does not find.
    """

    table: dict[str, Any]
    say: list[str] = field(default_factory=list)
    complete: bool = True
    share: float = 0.0
    cells: int = 0
    features: int = 0
    names: bool = True
    absent: list[str] = field(default_factory=list)

    @property
    def config(self) -> InputConfig:
        """The table as a mapper takes it."""
        return parse_input(self.table, where="the proposal")


def propose(batch: Batch, features: Sequence[str] | None = None, base: InputConfig | None = None) -> Proposal:
    """A table for these records.

    Args:
        batch: the newest records.
        features: of the model; None = all numbers.
        base: a table to complete, such as one that names only format and schema.

    Raises:
        TidecastError: a package that the format needs is not installed, or its schema cannot be read.
    """
    rows = sorted((row for row, value in enumerate(batch.values) if value), key=lambda row: batch.timestamps[row])
    rows = sorted(rows[-_MOST_RECORDS:])
    given = {} if base is None else given_of(base)
    say: list[str] = []
    if not ({"format", "preset", "schema"} & given.keys()):
        guess = guess_format([batch.values[row] for row in rows])
        given = guess.table | given
        if not guess.readable:
            return Proposal(given, guess.say, complete=False)
        say = guess.say
    sample = batch.take(rows)
    starts = [given] if given.get("preset") else [given, *_presets(given, sample)]
    found = [_complete(attempt, sample, features) for start in starts for attempt in _explosions(start, sample)]
    best = max((each for each in found if each.cells), key=_order, default=None)
    of_presets = (each for each in found if "preset" in each.table and best and each.share >= best.share / 2)
    best = next((each for each in of_presets if each.cells), best)
    if best is None:
        return Proposal(given, [*say, "No number in these records could be a feature."], complete=False)
    if base is None and _is_our_own(sample, best):
        say = ["These records have tidecast's own form: without --input they are read too.", *say]
    best.say[:0] = say
    return best


def given_of(config: InputConfig) -> dict[str, Any]:
    """What a table says that its preset (or, without one, the default) does not."""
    begun = {"preset": config.preset} | proposed_with(config.preset) if config.preset else {}
    usual = msgspec.to_builtins(parse_input(begun))
    table: dict[str, Any] = msgspec.to_builtins(config)
    schema = {name: value for name, value in table["schema"].items() if value != usual["schema"][name]}
    table["schema"] = schema or usual["schema"]
    return begun | {name: value for name, value in table.items() if value != usual[name]}


def mapped_by(config: InputConfig, batch: Batch, features: Sequence[str] | None) -> MappedBatch:
    """What the table makes of the records; one whose series cannot have its name is refused, as by a worker.

    Raises:
        TidecastError: a schema cannot be read, or its registry does not answer.
    """
    mapper = InputMapper(config, features)
    mapper.prepare(batch)
    mapped = mapper.map(batch)
    readings = mapped.readings
    gone = {*readings.rejected, *readings.tombstones}
    for row, key in enumerate(mapped.batch.keys):
        if row not in gone:
            try:
                check_key(key)
            except RecordRejected as rejection:
                readings.rejected[row] = rejection
    return mapped


def good_rows(mapped: MappedBatch) -> NDArray[np.int64]:
    """[readings] the rows that are readings."""
    keep = np.ones(len(mapped.batch), dtype=bool)
    keep[[*mapped.readings.rejected, *mapped.readings.tombstones]] = False
    return np.flatnonzero(keep)


# Attempts ----------------------------------------------------------------------------------------------------


def _items(table: dict[str, Any], batch: Batch) -> Level:
    mapper = InputMapper(parse_input(table), None)
    mapper.prepare(batch)
    return mapper.items(batch)


def _presets(given: dict[str, Any], batch: Batch) -> list[dict[str, Any]]:
    """Tables that begin with a preset whose signs the records have, those with the most signs first."""
    columns = Columns(_items(given, batch), batch)
    found = []
    for name in preset_names():
        signs = [columns.read(parse_paths(sign)) for sign in known_by(name)]
        known = sum(all(sign[row] is not MISSING for sign in signs) for row in range(len(columns)))
        if not signs or known <= _SOME * len(columns):
            continue
        start = {"preset": name} | proposed_with(name) | given
        own = parse_input({"preset": name} | proposed_with(name)).format
        if own == start.get("format"):
            del start["format"]
        elif own != "json":  # it is for another format
            continue
        found.append((len(signs), start))
    return [table for _, table in sorted(found, key=lambda each: -each[0])]


def _explosions(start: dict[str, Any], batch: Batch) -> list[dict[str, Any]]:
    """The table, and, unless it says what is exploded, the same with each list of items, and each in one of those."""
    config = parse_input(start)
    found = [start]
    if config.explodes or config.preset:
        return found
    for table in found:  # grows while it is read
        chain = parse_input(table).explodes
        if len(chain) < _DEEPEST and len(found) < _MOST_ATTEMPTS:
            branches = survey(_items(table, batch)).branches
            chains = [[*chain, path] for path in sorted(branches, key=lambda path: -branches[path])]
            found += [start | {"explode": each[0] if len(each) == 1 else each} for each in chains]
    return found[:_MOST_ATTEMPTS]


def _complete(start: dict[str, Any], batch: Batch, features: Sequence[str] | None) -> Proposal:
    """Guess what the table does not say, and read the records with it."""
    config, table, say = parse_input(start), {**start}, list[str]()
    level = _items(start, batch)
    leaves = all_leaves(level, batch, parse_paths(config.root) if config.root else (), config.decimal)
    record_ms = [max(0, batch.timestamps[record]) for record in level.records]
    record_keys = [batch.keys[record] for record in level.records]
    used = {path.strip() for text in (config.time, *config.skip_if, *config.only_if) for path in text.split(" | ")}
    rest = [leaf for leaf in leaves if leaf.path not in used]

    as_times = {leaf.path: guess for leaf in leaves if (guess := time_of(leaf, record_ms)) is not None}
    time = _complete_time(table, config, as_times)
    say += time.say
    name = next((leaf for leaf in leaves if config.name and leaf.path in config.name.split(" | ")), None)
    fields: FieldsGuess | None = None
    if not config.fields and not config.value:
        parts = key_paths(config.key)
        others = [leaf for leaf in rest if leaf.path not in parts]
        fields = guess_fields(others, lambda leaf: leaf.path in as_times, record_keys, features)
        table, name = table | fields.table, fields.name
        if fields.left:
            say.append(f"Numbers that are not taken as features: {_some(fields.left)}.")
        if fields.absent:
            say.append(f"Features of the model that no record seems to have: {_some(fields.absent)}.")
    absent = fields.absent if fields is not None else []
    names = True
    if not config.rekeys:
        values = {*table["fields"].values()} if isinstance(table.get("fields"), dict) else {table.get("value")}
        others = [leaf for leaf in rest if leaf is not name and leaf.path not in values | as_times.keys()]
        times = time.leaf.values if time.leaf is not None else record_ms
        named = name.values if name is not None else [""] * len(times)
        key = guess_key(others, batch, level.records, list(zip(map(str, named), map(str, times), strict=True)))
        table, say, names = table | key.table, say + key.say, key.names
    mapped = mapped_by(parse_input(table), batch, None)
    good = good_rows(mapped)
    if name is not None and config.join is None and (join := guess_join(mapped, good)):
        table["join"] = join
        say.append("A reading comes in several records, each with a part of its features: [input.join] makes them one.")
    read = {row if mapped.records is None else mapped.records[row] for row in good.tolist()}
    readings = {(mapped.batch.keys[row], int(mapped.readings.ts[row])) for row in good.tolist()}
    cells = round(np.isfinite(mapped.readings.x[good]).sum() * len(readings) / max(1, len(good)))
    share = len(read) / max(1, len(batch) - mapped.skipped)
    return Proposal(table, say, share=share, cells=cells, features=len(mapped.features), names=names, absent=absent)


def _complete_time(table: dict[str, Any], config: InputConfig, found: dict[str, TimeGuess]) -> TimeGuess:
    """Add where the time is, or, where the table says that, its unit or form. `found`: by path."""
    own = [found[path] for path in config.time.split(" | ") if path in found]
    best = max(found.values(), key=lambda guess: guess.score, default=NO_TIME)
    inner = best.leaf is not None and best.leaf.out == 0 and best not in own
    if "time" not in table and (not config.preset or (config.time.endswith("@record") and inner)):
        table |= best.table
    elif own and not ({"time_unit", "time_format"} & table.keys()):
        best = own[0]
        table |= {name: value for name, value in best.table.items() if name != "time"}
    else:
        return TimeGuess(None)
    if config.preset and config.time_unit is not None:
        if not ({"time_unit", "time_format"} & best.table.keys()) and best.leaf is not None:
            table["time_unit"] = "ms"
        if table.get("time_unit") == config.time_unit:
            del table["time_unit"]
    return best


def _order(proposal: Proposal) -> tuple[float, bool, int, int]:
    return round(proposal.share, 1), proposal.names, proposal.cells, -proposal.features


def _is_our_own(batch: Batch, proposal: Proposal) -> bool:
    """Whether a worker without --input reads all of this too."""
    fields = proposal.table.get("fields")
    if proposal.config.rekeys or not isinstance(fields, dict) or any(name != path for name, path in fields.items()):
        return False
    return not ReadingDecoder([*fields]).decode(batch.values).rejected


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
