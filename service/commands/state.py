"""`tidecast state`: the states of all series, as the changelog holds them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.broker.partitioner import PARTITIONERS
from tidecast.service.broker.port import Broker
from tidecast.service.commands.output import open_output
from tidecast.service.config import loader, settings
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ChangelogError, UsageError
from tidecast.service.model.spec import ModelSpec
from tidecast.service.state import changelog_admin, export_file, placement
from tidecast.service.state.changelog_admin import ChangelogEntry, SeriesLocation
from tidecast.service.state.codec import Codec, Snapshot
from tidecast.service.state.record import RecordHeader, read_header
from tidecast.service.state.store import named_slices
from tidecast.service.timestamps import MAX_TS_MS, MIN_TS_MS, NEVER, format_time

HELP = """\
List, show, delete, export or import the states of the series. They are in the changelog topic; no worker is needed.

list, show and export can be used at any time. They show what was last written: a running worker is some seconds ahead.
reset and import need a stopped group, because a running worker would overwrite the change. They refuse while the group
has members, unless --force is given. A group that has never committed counts as stopped.
import checks the whole file before it writes. Readings between the export and the group's offsets are missing from the
imported states."""
EXAMPLE = """\
tidecast state                                   # the same as: tidecast state list
tidecast state list --json | jq -c 'select(.steps < 24)'
tidecast state show JFK --model model
tidecast state reset JFK LGA
tidecast state export states.jsonl && tidecast state import states.jsonl --replace"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The actions, what each takes, and where Kafka is."""
    parser.set_defaults(action="list")
    actions = parser.add_subparsers()
    listing = actions.add_parser("list", help="every series: partition, offset and time of its last reading, steps")
    show = actions.add_parser("show", help="one series; with --model also its state, by the names in the model")
    reset = actions.add_parser(
        "reset",
        help="delete the state of these series (or --all); they restart from the initial state, except for the few "
        "seconds that a restart replays",
    )
    export = actions.add_parser("export", help="write all states as JSON lines")
    read = actions.add_parser("import", help="read them back into an empty changelog; with --replace into any")
    for each in (listing, show):
        each.add_argument("--json", action="store_true", help="one JSON object per line")
    listing.add_argument("--limit", type=int, metavar="N", help="at most N series, by name")
    show.add_argument("series", metavar="SERIES", help="name of the series")
    reset.add_argument("names", nargs="*", metavar="SERIES", help="names of the series")
    reset.add_argument("--all", action="store_true", help="every series")
    export.add_argument("file", metavar="FILE", help="the file to write; - is stdout")
    read.add_argument("file", metavar="FILE", help="a file that export wrote")
    for each in (reset, read):
        each.add_argument("--force", action="store_true", help="even if the group has members")
    read.add_argument("--replace", action="store_true", help="delete the states of all series that are not in the file")
    read.add_argument(
        "--new-input",
        action="store_true",
        help="the input topic is another than at the export: drop offsets, and choose partitions by key where their "
        "number is another",
    )
    read.add_argument(
        "--partitioner",
        choices=sorted(PARTITIONERS),
        help="with --new-input: choose partitions by key as the producers do: murmur2 (Java, tidecast produce), "
        "consistent (librdkafka), fnv1a (Sarama)",
    )
    for each in (listing, show, reset, export, read):
        loader.add_flags(each, *settings.CONNECTION, "input_topic", "changelog_topic", "group")
    loader.add_flags(show, "model", "model_sha256", "model_max_bytes")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit code."""
    config = loader.from_args(args)
    if args.action == "list" and args.limit is not None and args.limit < 1:
        raise UsageError("--limit must be at least 1", got=args.limit)
    if args.action == "reset" and bool(args.names) == args.all:
        raise UsageError("tidecast state reset takes SERIES… or --all", got=" ".join(args.names) or None)
    if args.action == "import" and args.partitioner and not args.new_input:
        raise UsageError("--partitioner is for readings from another topic", do="Give --new-input too.")
    spec = _spec(args, config) if args.action == "show" else None  # before connecting: a wrong file fails at once
    broker = connect_from_settings(config)
    try:
        if args.action == "list":
            return _list(broker, config, limit=args.limit, as_json=args.json)
        elif args.action == "show":
            _show(broker, config, args.series, spec, as_json=args.json)
        elif args.action == "reset":
            _reset(broker, config, args.names, force=args.force)
        elif args.action == "export":
            return _export(broker, config, args.file)
        else:
            _import(broker, config, args)
    finally:
        broker.close()
    return 0


def _spec(args: argparse.Namespace, config: Settings) -> ModelSpec | None:
    """The model's spec where a model was given; the default directory `model` may be missing."""
    if args.model is None and settings.variable("model") not in os.environ:
        return None
    from tidecast.service.model.session import Model  # onnxruntime takes a while to import, and only this needs it

    return Model.load(config.model, max_bytes=config.model_max_bytes, sha256=config.model_sha256 or None).spec


def _list(broker: Broker, config: Settings, *, limit: int | None, as_json: bool) -> int:
    damaged: dict[SeriesLocation, ChangelogError] = {}
    states = changelog_admin.read_latest(broker, config, read_header, damaged=damaged)
    all_of_them: dict[SeriesLocation, RecordHeader | ChangelogError] = {**states, **damaged}
    found = sorted(all_of_them.items(), key=lambda item: (item[0].key, item[0]))
    shown = found[:limit]
    if as_json:
        _write(msgspec.json.encode(_facts(place, header)) for place, header in shown)
    else:
        rows = [("series", "partition", "offset", "last reading", "steps")]
        rows += [
            (place.series, str(place.partition), "damaged", "", "")
            if isinstance(header, ChangelogError)
            else (place.series, str(place.partition), str(header.offset), _time(header.last_ts), str(header.steps))
            for place, header in shown
        ]
        wide = [max(len(row[i]) for row in rows) for i in range(5)]
        _write(
            f"{name:<{wide[0]}}  {p:>{wide[1]}}  {o:>{wide[2]}}  {ts:<{wide[3]}}  {n:>{wide[4]}}".encode()
            for name, p, o, ts, n in rows
        )
    if len(shown) < len(found):
        print(f"{len(found) - len(shown)} more; leave out --limit to list all", file=sys.stderr)
    return _say_damaged(damaged)


def _say_damaged(damaged: Mapping[SeriesLocation, ChangelogError]) -> int:
    """Name the states that cannot be used; the exit code."""
    for _, error in sorted(damaged.items(), key=lambda item: item[0]):
        print(f"tidecast: {error}", file=sys.stderr)
    if damaged:
        print(f"{len(damaged)} states cannot be used", file=sys.stderr)
    return 1 if damaged else 0


def _show(broker: Broker, config: Settings, series: str, spec: ModelSpec | None, *, as_json: bool) -> None:
    """Print the state of the series, in each partition that has one."""
    codec = None if spec is None else Codec(spec)

    def decode(value: bytes) -> tuple[RecordHeader, Snapshot | None]:
        return read_header(value), None if codec is None else codec.decode(value)

    damaged: dict[SeriesLocation, ChangelogError] = {}
    found = changelog_admin.read_latest(broker, config, decode, only={series.encode()}, damaged=damaged)
    for error in damaged.values():
        raise error
    if not found:
        raise _unknown(config, [series])
    for place, (header, snapshot) in sorted(found.items()):
        facts = _facts(place, header) | {"seen_ms": header.seen_ms, "layout": header.layout.hex()}
        facts["state_size"] = header.state_size
        if header.members:
            facts["models"] = [member.hash for member in header.members]
        if header.waiting is not None:
            facts["waiting"] = [{"ts": group.ts, "values": group.values} for group in header.waiting.groups]
        if snapshot is not None and spec is not None:
            facts["state"] = named_slices(snapshot.state, spec.state)
        if as_json:
            _write([msgspec.json.encode(facts)])
        else:
            facts |= {"ts": _time(header.last_ts), "seen_ms": _time(header.seen_ms)}
            parts = facts.pop("state", {})
            lines = [*facts.items(), *parts.items()]
            width = max(len(name) for name, _ in lines)
            _write(f"{name:<{width}}  {value}".encode() for name, value in lines)


def _reset(broker: Broker, config: Settings, names: list[str], *, force: bool) -> None:
    keys = {name.encode() for name in names}
    found = changelog_admin.read_latest(
        broker, config, lambda value: None, only=keys or None
    )  # the value is not decoded, so damaged ones can be reset
    if missing := sorted(keys - {place.key for place in found}):
        raise _unknown(config, [key.decode() for key in missing])
    if not force:
        changelog_admin.check_stopped(broker, config)
    changelog_admin.append(broker, config, (ChangelogEntry(place, None) for place in found))
    print(f"deleted {len(found)} states in {config.changelog_topic}", file=sys.stderr)


def _export(broker: Broker, config: Settings, file: str) -> int:
    partitions = changelog_admin.partitions_of(broker, config)
    damaged: dict[SeriesLocation, ChangelogError] = {}
    found = changelog_admin.read_latest(broker, config, bytes, damaged=damaged)
    with open_output(file, "Give another FILE.", private=True) as out:
        for place, value in sorted(found.items()):
            out.write(export_file.to_line(place, partitions, value))
        out.write(export_file.last_line(len(found)))
    print(f"wrote {len(found)} states of {config.changelog_topic}", file=sys.stderr)
    return _say_damaged(damaged)


def _import(broker: Broker, config: Settings, args: argparse.Namespace) -> None:
    file, new_input = Path(args.file), args.new_input
    partitions = changelog_admin.partitions_of(broker, config)
    ends = {} if new_input else changelog_admin.input_ends(broker, config)
    entries = export_file.read_states(file, partitions, new_input=new_input, partitioner=args.partitioner, ends=ends)
    if new_input:
        read_in = placement.partitions_read(broker, config)
        placement.check_placement([entry.place for entry in entries], read_in, partitions)
    there = changelog_admin.read_latest(broker, config, lambda value: None)
    if there and not args.replace:
        raise BrokerError(
            f"the changelog {config.changelog_topic} has states of {len(there)} series already",
            do="Give --replace to replace them, or another --changelog-topic.",
        )
    if not args.force:
        changelog_admin.check_stopped(broker, config)
    gone = there.keys() - {entry.place for entry in entries}
    changelog_admin.append(broker, config, [*entries, *(ChangelogEntry(place, None) for place in sorted(gone))])
    print(f"wrote {len(entries)} states to {config.changelog_topic}, deleted {len(gone)}", file=sys.stderr)


def _unknown(config: Settings, names: list[str]) -> BrokerError:
    return BrokerError(
        f"the changelog {config.changelog_topic} has no state of {', '.join(map(repr, names))}",
        do="List the series: tidecast state list",
    )


def _facts(place: SeriesLocation, header: RecordHeader | ChangelogError) -> dict[str, Any]:
    """By the names that /series/<key> uses."""
    if isinstance(header, ChangelogError):
        return {"series": place.series, "partition": place.partition, "damaged": header.what}
    return {
        "series": place.series,
        "partition": place.partition,
        "offset": header.offset,
        "ts": None if header.last_ts == NEVER else header.last_ts,
        "steps": header.steps,
    }


def _time(ms: int) -> str:
    if ms == NEVER:  # parts of its first reading wait
        return "-"
    return format_time(ms) if MIN_TS_MS <= ms <= MAX_TS_MS else str(ms)


def _write(lines: Iterable[bytes]) -> None:
    """Data goes to stdout, as UTF-8 whatever the terminal's locale."""
    sys.stdout.flush()
    for line in lines:
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
