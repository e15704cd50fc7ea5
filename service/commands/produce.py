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
from tidecast.service.observability import logs
from tidecast.service.timestamps import format_time, parse_duration_ms, parse_time

HELP = """\
Send readings to the input topic: a CSV at its own pace or faster, noisy sines, or this machine's own sensors.

A file's series are merged by event time, as a live stream would bring them. Ctrl-C or SIGTERM ends it: what was
handed over is sent, and the count is printed."""
EXAMPLE = """\
tidecast produce file weather.csv --model model --speed 3600          # an hour of event time each second
tidecast produce file weather.csv --time time_hour --series origin --features temp,dewp --speed max
tidecast produce sine --series 100 --rate 10
tidecast produce machine --interval 5s
tidecast produce file weather.csv --model model --limit 3 --speed max --dry-run"""

SOURCES = ("file", "sine", "machine")
_ONLY = {  # which flags belong to which source
    "data": ("file",),
    "time": ("file",),
    "start_at": ("file",),
    "until": ("file",),
    "loop": ("file",),
    "now": ("file",),
    "model": ("file",),
    "features": ("file", "sine"),
    "series": ("file", "sine"),
    "speed": ("file", "sine"),
    "rate": ("sine",),
    "noise": ("sine",),
    "seed": ("sine",),
    "interval": ("machine",),
    "wide": ("machine",),
    "name": ("file", "machine"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """The source, and what each source takes; None = not given."""
    add = parser.add_argument
    add("source", metavar="SOURCE", nargs="?", help="file (the default), sine or machine")
    add("path", metavar="FILE", nargs="?", help="CSV (also .gz) or Parquet; the same as --data")
    group = parser.add_argument_group("File")
    add = group.add_argument
    add("--data", metavar="FILE", help="CSV (also .gz) or Parquet")
    add("--model", metavar="DIR", help="take --time, --series, --features and --name from this model's config.toml")
    add("--time", metavar="COL", help="column of the event time: ISO 8601 (UTC unless it says otherwise) or epoch ms")
    add(
        "--series",
        metavar="COL|N",
        help='key column; "columns" = each feature column is a series, its value called "value". Sine: how many [10]',
    )
    add("--features", metavar="A,B,…", help=f'feature columns. Sine: what the value is called ["{UNIVARIATE}"]')
    add("--name", metavar="KEY", help="key where there is no key column [the file's name]. Machine: its name")
    add("--from", dest="start_at", metavar="TIME", help="leave out readings before it")
    add("--until", metavar="TIME", help="leave out readings from it on")
    add("--loop", action="store_true", default=None, help="again and again, event times going on where they ended")
    add("--now", action="store_true", default=None, help="shift event times so that the first reading is one of now")
    group = parser.add_argument_group("Sine")
    add = group.add_argument
    add("--rate", metavar="R", help="readings per second of event time in each series [1]")
    add("--noise", metavar="X", help="standard deviation of the noise, as a share of each sine's height [0.1]")
    add("--seed", metavar="N", help="the same seed gives the same values [0]")
    group = parser.add_argument_group("Machine")
    add = group.add_argument
    add("--interval", metavar="TIME", help='between readings, such as "500ms" [1s]')
    add(
        "--wide",
        action="store_true",
        default=None,
        help="one series with every sensor as a feature, instead of one series for each sensor",
    )
    group = parser.add_argument_group("All")
    add = group.add_argument
    add("--speed", metavar="X", help="event seconds for each second: 1 [default], 3600, or max")
    add("--limit", metavar="N", help="stop after so many readings")
    add("--dry-run", action="store_true", help="print the records to stdout, one JSON object a line; needs no Kafka")
    loader.add_flags(parser, *settings.CONNECTION, "input_topic", "log_level")


def run(args: argparse.Namespace) -> int:
    """Send until the source ends or a signal comes; the exit code."""
    config = loader.from_args(args)
    logs.setup(config.log_level)
    if config.log_level != "debug":
        logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what matters of it comes as a BrokerError
    clock = SystemClock()
    batches = _batches(_source(args), args, clock)  # before Kafka: a wrong flag or file should not wait for it
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


def _source(args: argparse.Namespace) -> str:
    """Which source; also moves a FILE given by position into `data`, and refuses flags of other sources."""
    source: str | None = args.source
    if source is not None and source not in SOURCES:
        if args.path is not None or not (Path(source).exists() or Path(source).suffix):
            raise UsageError("SOURCE is file, sine or machine", got=source)
        source, args.path = "file", source
    source = source or "file"
    if args.path is not None:
        if source != "file" or args.data is not None:
            raise UsageError("one FILE is enough, and only with the source file", got=args.path)
        args.data = args.path
    for name, allowed in _ONLY.items():
        if getattr(args, name) is not None and source not in allowed:
            flag = "--from" if name == "start_at" else f"--{name}"
            raise UsageError(f"{flag} means nothing to the source {source}", do=f"It is for: {', '.join(allowed)}.")
    return source


def _batches(source: str, args: argparse.Namespace, clock: PacingClock) -> Iterator[list[Reading]]:
    """Readings in the lists that are due together; ends by itself, by --limit, or when the clock says stop."""
    limit = None if args.limit is None else _integer("--limit", args.limit, 1)
    if limit is not None and limit < 1:
        raise UsageError("--limit must be 1 or more", got=args.limit)
    if source == "machine":
        interval = parse_duration_ms(args.interval or "1s")
        batches = sources.machine_readings(
            sources.machine_sensors(clock),
            clock,
            interval_ms=interval,
            host=args.name or sources.host_name(),
            wide=bool(args.wide),
        )
        say(f"this machine's sensors every {interval / 1_000:g} s")
        return _first(batches, limit)
    speed = parse_speed(args.speed or "1")
    if source == "sine":
        series, rate = _integer("--series", args.series, 10), _real("--rate", args.rate, 1.0)
        made = sources.sine_readings(
            series=series,
            rate=rate,
            start_ms=int(clock.now_ms()) // 1_000 * 1_000,
            feature=args.features or UNIVARIATE,
            noise=_real("--noise", args.noise, 0.1),
            seed=_integer("--seed", args.seed, 0),
        )
        say(f"{series:,} sines, {rate:g} readings a second each, {_at(speed)}")
        return paced(itertools.islice(made, limit), speed, clock)
    table = sources.file_table(
        args.data or _missing("--data"),
        columns_of(args),
        start=_moment("--from", args.start_at),
        until=_moment("--until", args.until),
        limit=None if args.loop else limit,
    )
    if args.now:
        table = sources.shifted(table, sources.now_shift(table, clock.now_ms()))
        if speed > 1:
            say("--now with a speed above 1: event times run ahead of the clock, and the worker refuses readings")
            say("more than its --max-future-seconds ahead (0 = no limit)")
    say(_describe(table, speed))
    return paced(itertools.islice(sources.looped(table) if args.loop else readings(table), limit), speed, clock)


def columns_of(args: argparse.Namespace) -> Columns:
    """From the model's config, each overridden by its own flag where that is given."""
    base = read_model_config(args.model).columns if args.model else None
    series = args.series if args.series is not None else ("columns" if base and base.each_column else None)
    if series is None and base is not None:
        series = base.series
    each_column = series == "columns"
    return Columns(
        time=args.time or (base.time if base else _missing("--time")),
        features=_names(args.features) if args.features else (base.features if base else _missing("--features")),
        series=None if each_column else series,
        each_column=each_column,
        name=args.name or (base.name if base else Path(args.data).name.partition(".")[0] or "series"),
    )


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
    return "as fast as it goes" if math.isinf(speed) else f"at {speed:g} x"


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


def _integer(flag: str, text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        raise UsageError(f"{flag} must be a whole number", got=text) from None


def _real(flag: str, text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:
        raise UsageError(f"{flag} must be a number", got=text) from None


def _missing(flag: str) -> NoReturn:
    raise UsageError(
        f"produce needs {flag}",
        do="Name file and columns (--data, --time, --features), or give the file and --model DIR.",
    )
