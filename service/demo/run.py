"""The demo, in order: starter, Kafka, topics, worker, training, history, live stream, display; and then the clean-up.

The starter answers from the first reading on. The trained model runs next to it as soon as it is there, and takes over
when a test says that it is better. With a model of the user's own, that one alone is shown.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.broker.topics import create_topics
from tidecast.service.config.settings import Settings
from tidecast.service.datafiles.readings import ModelDataConfig, read_data_config, read_model_config
from tidecast.service.datafiles.table import UNIVARIATE
from tidecast.service.demo.children import Child
from tidecast.service.demo.display import error_lines, make_display, rival_lines
from tidecast.service.demo.prepare import Training, make_starter, sample, say, start_kafka
from tidecast.service.demo.rivals import read_rivals
from tidecast.service.demo.scoreboard import Scoreboard
from tidecast.service.errors import TidecastError
from tidecast.service.stop_flag import StopRequested, raise_on_signals
from tidecast.service.timestamps import format_duration, format_time, parse_time

PARTITIONS = 3
HISTORY_MS = 21 * 86_400_000  # sent at once before the live part, so that the series begin it warm
_READY_S = 60.0
_PRODUCER_STOP_S = 10.0
_LAST_S = 5.0  # at most, for the forecasts of the last readings to arrive
_BEGINNING = -2
_TOPICS = ("input_topic", "output_topic", "dead_letter_topic", "changelog_topic", "decisions_topic")
_LOOK_S = 1.0  # between two looks at the worker's models


@dataclass(frozen=True, slots=True)
class Plan:
    """What the flags ask for."""

    seconds: float
    speed: float  # seconds of event time per second
    folder: Path  # the models of the demo, Kafka's data and the logs
    model: Path | None  # None = a starter, and one that is trained on the sample
    data: Path | None  # None = the sample
    bootstrap_servers: str | None  # None = an embedded broker
    connection: tuple[str, ...] = ()  # flags for whoever connects to it


def run(plan: Plan, settings: Settings) -> None:
    """Run the demo; returns when it has ended and nothing is left running.

    Raises:
        TidecastError: a part failed, with its own message.
    """
    finished = False
    with contextlib.suppress(StopRequested), raise_on_signals(), contextlib.ExitStack() as stack:
        plan.folder.mkdir(parents=True, exist_ok=True)
        # The stack stops the producer, then the worker, then deletes the topics, then stops Kafka.
        own_kafka = plan.bootstrap_servers is None
        training = None if plan.model else Training(plan.folder)
        if training is not None:
            stack.callback(training.stop)
        model = plan.model or make_starter(own_kafka=own_kafka)
        data = plan.data or sample("weather.csv.gz")
        config = read_model_config(model) if plan.model else read_data_config(sample("weather.toml"))
        settings = replace(settings, bootstrap_servers=plan.bootstrap_servers or start_kafka(plan.folder, stack))
        settings = _own_topics(settings, stack, alone=own_kafka)
        board = Scoreboard(parse_time(config.test_from) if config.test_from else 0)

        shadow: list[str] = []
        if training is not None:
            shadow = ["--shadow", str(training.model), "--promote", "auto", "--model-watch-seconds", "1"]
            shadow += ["--decisions-topic", settings.decisions_topic]
        served = ("serve", "--model", str(model), *shadow, *_worker_flags(settings), *plan.connection)
        worker = _child(stack, 20.0, "worker", plan.folder, *served)
        url = _await_ready(worker)
        say(f"the worker is ready; its metrics are at {url}/metrics, its log is {worker.log}")
        page = _page(stack, plan.folder, settings, *plan.connection)
        produce = ("produce", "file", str(data), "--model", str(model), *_produce_flags(settings), *plan.connection)
        if config.test_from is not None:
            past = str(board.start_ms - HISTORY_MS)
            say("sending the three weeks before the live part, so that the forecasts are good from the start")
            _history(stack, plan.folder, *produce, "--from", past, "--until", str(board.start_ms), "--speed", "max")
        live = ["--from", str(board.start_ms)] if config.test_from else []
        live += ["--loop"] * (plan.data is None)
        producer = _child(stack, _PRODUCER_STOP_S, "producer", plan.folder, *produce, *live, "--speed", str(plan.speed))
        each_second = format_duration(round(plan.speed) * 1_000)
        since = "" if training is None or training.ready() else " once the trained model is there too"
        say(f"live: {each_second} of {config.name} readings per second, for {plan.seconds:g} s{since}. Ctrl-C ends it.")
        if page is not None:
            say(f"open {page} in a browser to see a chart")
        title = f"{config.name}, live{f': {page}' if page is not None else ''}"
        _watch(plan, settings, config, board, Parts(worker, producer, training, url), title)
        finished = True
    say("stopped; nothing is left running")
    if finished and plan.data is None:
        say(f"next, a data file of your own: {_own_command()} inspect FILE.csv")


def _own_topics(settings: Settings, stack: contextlib.ExitStack, *, alone: bool) -> Settings:
    """Create topics and a group for this run only: readings of an earlier run would make new ones late.

    On the demo's own Kafka (`alone`) the usual names are used, if no earlier demo left them there.
    """
    run_name = time.strftime("demo-%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    broker = connect_from_settings(settings)
    names = dict(zip(_TOPICS, ("readings", "forecasts", "dead-letters", "state", "decisions"), strict=True))
    if not alone or any(broker.partitions(getattr(settings, role)) for role in _TOPICS):
        settings = replace(settings, **{role: f"{run_name}-{name}" for role, name in names.items()})
    own = replace(settings, group=run_name)
    stack.callback(_delete_topics, broker, own)
    create_topics(broker, own, partitions=PARTITIONS)
    return own


def _delete_topics(broker: Broker, settings: Settings) -> None:
    with contextlib.suppress(TidecastError):  # if Kafka has ended, there is nothing to clean up
        for role in _TOPICS:
            broker.delete_topic(getattr(settings, role))
    broker.close()


def _worker_flags(settings: Settings) -> list[str]:
    s = settings
    return [
        *_produce_flags(s), "--output-topic", s.output_topic, "--dead-letter-topic", s.dead_letter_topic,
        "--changelog-topic", s.changelog_topic, "--group", s.group, "--http-port", "0",
        "--log-format", "text", "--log-level", "info",
    ]  # fmt: skip


def _produce_flags(settings: Settings) -> list[str]:
    return ["--bootstrap-servers", settings.bootstrap_servers, "--input-topic", settings.input_topic]


def _child(stack: contextlib.ExitStack, stop_s: float, name: str, folder: Path, *args: str) -> Child:
    child = Child(name, folder, *args)
    stack.callback(child.stop, stop_s)
    return child


def _await_ready(worker: Child) -> str:
    """The worker's address, once it is ready."""
    return _await_address(worker, _ready)


def _await_address(child: Child, ready: Callable[[str], bool] = bool) -> str:
    """A child's address, once `ready` is true for it. It is read from the log, as the port may be any free one."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if child.ended():
            break
        found = re.search(r"url=(http://\S+)", child.log.read_text(errors="replace"))
        if found and ready(found[1]):
            return found[1]
        time.sleep(0.1)
    raise TidecastError(f"the {child.name} was not ready; the end of {child.log}:\n{child.log_tail()}\n")


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _page(stack: contextlib.ExitStack, folder: Path, settings: Settings, *connection: str) -> str | None:
    """Start the live page if it is installed, on a free port if the usual one is taken; returns its address."""
    if any(importlib.util.find_spec(package) is None for package in ("starlette", "uvicorn", "youplot")):
        say("for a chart in a browser as well: pip install 'tidecast[watch]'")
        return None
    try:
        socket.create_server((settings.watch_host, settings.watch_port)).close()
    except OSError:
        settings = replace(settings, watch_port=0)
    page = _child(stack, 5.0, "page", folder, "watch", *_page_flags(settings), *connection)
    return _await_address(page)


def _page_flags(settings: Settings) -> list[str]:
    return [
        *_produce_flags(settings), "--output-topic", settings.output_topic, "--client", settings.client,
        "--watch-host", settings.watch_host, "--watch-port", str(settings.watch_port),
        "--log-format", "text", "--log-level", "info",
    ]  # fmt: skip


def _history(stack: contextlib.ExitStack, folder: Path, *produce: str) -> None:
    """Send the weeks before the live part as fast as possible."""
    history = _child(stack, 10.0, "history", folder, *produce)
    while not history.ended():
        time.sleep(0.05)


@dataclass(slots=True)
class Parts:
    """What runs while the demo is shown."""

    worker: Child
    producer: Child
    training: Training | None
    url: str  # of the worker
    trained: bool = False  # the trained model runs, or there is none to wait for
    looked: float = 0.0

    def look(self, board: Scoreboard) -> None:
        """Look after them, and at the worker's models.

        Raises:
            TidecastError: one has ended that should run.
        """
        if self.worker.ended():
            raise TidecastError(f"the worker ended; the end of {self.worker.log}:\n{self.worker.log_tail()}\n")
        if self.training is None:
            self.trained = True
        elif self.training.ready() and time.monotonic() > self.looked + _LOOK_S:
            self.looked = time.monotonic()
            before, board.rivals = board.rivals, read_rivals(self.url) or board.rivals
            self._say_what_is_new({name for name, one in before.items() if one.answers}, board)

    def _say_what_is_new(self, answered: set[str], board: Scoreboard) -> None:
        if len(board.rivals) > 1 and not self.trained:
            self.trained = True
            say("the trained model runs next to the starter: both are scored on the same readings, the starter answers")
        for name in sorted({name for name, one in board.rivals.items() if one.answers} - answered):
            if answered:
                say(f"{name} is better than the model that answered, as a test says: it answers from now on")


def _watch(
    plan: Plan, settings: Settings, config: ModelDataConfig, board: Scoreboard, parts: Parts, title: str
) -> None:
    """Read both topics from the start and show them, until the time is up or the file ends."""
    target = UNIVARIATE if config.columns.each_column else config.data.targets[0]
    unit = config.data.units.get(config.data.targets[0], "")
    broker = connect_from_settings(settings)
    display = make_display(target, unit, title)
    end = math.inf
    readings, forecasts = (_reader(broker, topic) for topic in (settings.input_topic, settings.output_topic))

    def read() -> bool:
        """Whether anything arrived."""
        before = board.readings, board.forecasts
        _count_readings(readings.poll(0.05, 2_000), board, target)
        _count_forecasts(forecasts.poll(0.05, 2_000), board, target)
        display.show(board)
        return (board.readings, board.forecasts) != before

    try:
        while time.monotonic() < end:
            read()
            parts.look(board)
            if parts.trained and end == math.inf:
                end = time.monotonic() + plan.seconds
            if parts.producer.ended():
                break  # at the end of the file
        parts.producer.stop(_PRODUCER_STOP_S)
        last = time.monotonic() + _LAST_S
        while (read() or board.forecasts < board.readings) and time.monotonic() < last:
            pass
    finally:
        display.close()
        for connection in (readings, forecasts, broker):
            connection.close()
        _sum_up(board, unit)  # also after Ctrl-C or an error


def _reader(broker: Broker, topic: str) -> Consumer:
    consumer = broker.consumer()
    consumer.assign(topic, dict.fromkeys(range(PARTITIONS), _BEGINNING))
    return consumer


def _count_readings(batch: Batch, board: Scoreboard, target: str) -> None:
    for key, value in zip(batch.keys, batch.values, strict=True):
        if key is not None and value is not None:
            reading = msgspec.json.decode(value)
            board.reading(key.decode(), reading["ts"], reading.get(target))


def _count_forecasts(batch: Batch, board: Scoreboard, target: str) -> None:
    for key, value in zip(batch.keys, batch.values, strict=True):
        if key is not None and value is not None:
            made = msgspec.json.decode(value)
            board.forecast(key.decode(), made["ts"], made["step_ms"], made["warm"], made["targets"][target])


def _sum_up(board: Scoreboard, unit: str) -> None:
    newest = max((row.ts for row in board.rows()), default=None)
    until = f", up to {format_time(newest)}" if newest is not None else ""
    print(f"\n{board.forecasts:,} forecasts for {board.readings:,} readings through Kafka{until}:")
    unit = f" {unit}" if unit else ""
    for line in [*(error_lines(board, unit) or ["  none could be checked yet"]), *rival_lines(board, unit)]:
        print(line)
    sys.stdout.flush()


def _own_command() -> str:
    """How this command was called, to be pasted: `.venv/bin/tidecast` under make."""
    return sys.argv[0] if Path(sys.argv[0]).name == "tidecast" else "tidecast"
