"""`tidecast produce`: readings into the input topic, from a file, a synthetic sine, or this machine's sensors."""

from __future__ import annotations

import argparse
import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from tidecast.service.config import loader, settings
from tidecast.service.datafiles.readings import Reading, read_model_config, readings
from tidecast.service.datafiles.table import UNIVARIATE, Columns, Table
from tidecast.service.errors import UsageError
from tidecast.service.feed import sources
from tidecast.service.feed.pacing import PacingClock, SystemClock, paced, parse_speed
from tidecast.service.feed.sender import StdoutProducer, check_topic, say, send, stop_on_signals
from tidecast.service.input.files import DataFile, table_of
from tidecast.service.observability import logs
from tidecast.service.timestamps import format_time, parse_duration_ms, parse_time

HELP = """\
Send readings to the input topic: from a file, as noisy sines, or from this machine's own sensors.

Ctrl-C or SIGTERM ends it: readings that were handed to Kafka's client are still sent, and the count is printed."""
EXAMPLE = """\
tidecast produce file weather.csv --model model --speed 3600          # an hour of event time each second
tidecast produce file weather.csv --time time_hour --series origin --features temp,dewp --speed max
tidecast produce sine --series 100 --rate 10
tidecast produce machine --interval 5s
tidecast produce file weather.csv --model model --limit 3 --speed max --dry-run"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The sources, and what each takes."""
    parser.set_defaults(action="file")
    actions = parser.add_subparsers()
    file = actions.add_parser("file", help="a CSV or Parquet file; its series are merged by event time (the default)")
    sine = actions.add_parser("sine", help="noisy sines, without an end")
    machine = actions.add_parser("machine", help="CPU, memory and disk of this machine, without an end")

    add = file.add_argument
    add("path", metavar="FILE", nargs="?", help="CSV (also .gz) or Parquet; the same as --data")
    add("--data", metavar="FILE", help="CSV (also .gz) or Parquet")
    add("--model", metavar="DIR", help="take --time, --series, --features and --name from this model's config.toml")
    add("--input", dest="table", metavar="FILE", help="TOML file whose [input] table says how rows become readings, "
        "instead of --time and --series [the model's, if its config.toml has one]")  # fmt: skip
    add("--time", metavar="COL", help="column of the event time: ISO 8601 (UTC unless it has an offset) or epoch ms")
    add("--series", metavar="COL", help='key column; "columns" = each feature column is a series, its value is "value"')
    add("--features", metavar="A,B,…", help="feature columns")
    add("--name", metavar="KEY", help="key where there is no key column [the file's name]")
    add("--from", dest="start_at", metavar="TIME", help="leave out earlier readings")
    add("--until", metavar="TIME", help="leave out readings at this time and later")
    add("--loop", action="store_true", help="start again at the end; event times continue")
    add("--now", action="store_true", help="shift event times so that the first reading has the present time")

    add = sine.add_argument
    add("--series", metavar="N", default="10", help="how many series [10]")
    add("--features", metavar="NAME", default=UNIVARIATE, help=f"name of the value [{UNIVARIATE}]")
    add("--rate", metavar="R", default="1", help="readings per second of event time in each series [1]")
    add("--noise", metavar="X", default="0.1", help="noise: its deviation as a share of the amplitude [0.1]")
    add("--seed", metavar="N", default="0", help="the same seed gives the same values [0]")

    add = machine.add_argument
    add("--interval", metavar="TIME", default="1s", help='time between readings, such as "500ms" [1s]')
    add("--wide", action="store_true", help="one series with every sensor as a feature, not one series per sensor")
    add("--name", metavar="KEY", help="name of this machine in the keys [its host name]")

    for each in (file, sine):
        each.add_argument(
            "--speed", metavar="X", default="1", help="seconds of event time per second: 1 [default], 3600, or max"
        )
    for each in (file, sine, machine):
        each.add_argument("--limit", metavar="N", help="stop after N readings")
        each.add_argument(
            "--dry-run", action="store_true", help="print the records, one JSON object per line; needs no Kafka"
        )
        loader.add_flags(each, *settings.CONNECTION, "input_topic", "log_level")


def run(args: argparse.Namespace) -> int:
    """Send until the source ends or a signal comes; the exit code."""
    config = loader.from_args(args)
    logs.setup(config.log_level)
    if config.log_level != "debug":
        logging.getLogger("kafka").setLevel(logging.CRITICAL)  # its errors are raised as BrokerError
    clock = SystemClock()
    batches = _batches(args, clock)  # before connecting: a wrong flag or file fails at once
    if args.dry_run:
        with stop_on_signals(clock):
            return send(batches, StdoutProducer(), config.input_topic, 0.0, "printed")

    from tidecast.service.broker.connect import connect_from_settings

    broker = connect_from_settings(config)
    try:
        check_topic(broker, config)
        producer = broker.producer()
        try:
            with stop_on_signals(clock):
                return send(batches, producer, config.input_topic, config.broker_timeout_seconds, "sent")
        finally:
            producer.close()
    finally:
        broker.close()


def _batches(args: argparse.Namespace, clock: PacingClock) -> Iterator[list[Reading]]:
    """Readings in the lists that are due together; ends at the end of the file, at --limit, or when the clock stops."""
    limit = None if args.limit is None else _integer("--limit", args.limit)
    if limit is not None and limit < 1:
        raise UsageError("--limit must be 1 or more", got=args.limit)
    if args.action == "machine":
        interval = parse_duration_ms(args.interval)
        batches = sources.machine_readings(
            sources.machine_sensors(clock),
            clock,
            interval_ms=interval,
            host=args.name or sources.host_name(),
            wide=args.wide,
        )
        say(f"this machine's sensors every {interval / 1_000:g} s")
        return _first(batches, limit)
    speed = parse_speed(args.speed)
    if args.action == "sine":
        series, rate = _integer("--series", args.series), _real("--rate", args.rate)
        made = sources.sine_readings(
            series=series,
            rate=rate,
            start_ms=int(clock.now_ms()) // 1_000 * 1_000,
            feature=args.features,
            noise=_real("--noise", args.noise),
            seed=_integer("--seed", args.seed),
        )
        say(f"{series:,} sines, {rate:g} readings a second each, {_at(speed)}")
        return paced(itertools.islice(made, limit), speed, clock)
    if args.path is not None and args.data is not None:
        raise UsageError("one file is enough: FILE or --data", got=f"{args.path} and --data {args.data}")
    path = args.path or args.data or _missing("FILE")
    file = file_of(args, path)
    table = sources.file_table(
        file,
        start=_moment("--from", args.start_at),
        until=_moment("--until", args.until),
        limit=None if args.loop else limit,
    )
    for sentence in file.counts.sentences():
        say(sentence)
    if args.now:
        table = sources.shifted(table, sources.now_shift(table, clock.now_ms()))
        if speed > 1:
            say("--now with a speed above 1: event times run ahead of the clock, and the worker rejects readings")
            say("that are more than its --max-future-seconds ahead (0 = no limit)")
    say(_describe(table, speed))
    return paced(itertools.islice(sources.looped(table) if args.loop else readings(table), limit), speed, clock)


def file_of(args: argparse.Namespace, path: str) -> DataFile:
    """The file as the model's config describes it; each flag that is given wins over it."""
    model = read_model_config(args.model) if args.model else None
    base = model.columns if model else None
    table = table_of(args.table, model if args.time is None and args.series is None else None)
    if args.table is not None and (flag := "--time" if args.time else "--series" if args.series else None):
        raise UsageError(f"the table of --input says what {flag} would say", do="Leave one of them out.")
    name = args.name or (base.name if base else Path(path).name.partition(".")[0] or "series")
    features = _names(args.features) if args.features else base.features if base else None
    if table is not None:
        if features is None:
            features = () if table.long or table.feature_fields else _missing("--features")
        each_column = base is not None and base.each_column
        return DataFile(path, Columns("", features, each_column=each_column, name=name), table)
    series = args.series if args.series is not None else ("columns" if base and base.each_column else None)
    if series is None and base is not None:
        series = base.series
    each_column = series == "columns"
    columns = Columns(
        time=args.time or (base.time if base else "") or _missing("--time"),
        features=features or _missing("--features"),
        series=None if each_column else series,
        each_column=each_column,
        name=name,
    )
    return DataFile(path, columns)


def _first(batches: Iterable[list[Reading]], limit: int | None) -> Iterator[list[Reading]]:
    for batch in batches:
        if limit is None:
            yield batch
            continue
        yield batch[:limit]
        limit -= len(batch)
        if limit <= 0:
            return


def _describe(table: Table, speed: float) -> str:
    first, last = int(table.ts.min()), int(table.ts.max())
    text = f"{len(table):,} readings of {len(set(table.series)):,} series, {format_time(first)} to {format_time(last)}"
    lasts = "" if math.isinf(speed) else f", {_hours((last - first) / 1_000 / speed)}"
    return f"{text}, {_at(speed)}{lasts}"


def _at(speed: float) -> str:
    return "as fast as possible" if math.isinf(speed) else f"at {speed:g} x"


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:,.0f} h"


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names or _missing("--features")


def _moment(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        raise UsageError(f"{flag} is a time", got=text, do="Write it like 2013-10-25T00:00:00Z, or epoch ms.") from None


def _integer(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{flag} must be a whole number", got=text) from None


def _real(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{flag} must be a number", got=text) from None


def _missing(what: str) -> NoReturn:
    raise UsageError(
        f"produce needs {what}",
        do="Give the file and its columns (FILE, --time, --features), or the file and --model DIR, or --input TABLE.",
    )
