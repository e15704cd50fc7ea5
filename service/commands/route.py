"""`tidecast route`: brings the readings of each series into one partition, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import time

from tidecast.service.commands import worker_run
from tidecast.service.config import loader, settings
from tidecast.service.errors import UsageError

log = logging.getLogger("tidecast.route")

HELP = """\
Write the readings of a topic of any shape to the topic that `tidecast serve` reads, each series in one partition.

For topics whose keys are null, or do not name the series. The [input] table of --input says what the name of the series
is, and how a record becomes readings. With --model only the features of that model are written. Ends on SIGTERM or
Ctrl-C, as `tidecast serve` does; several of them share the source topic."""
EXAMPLE = """\
tidecast route --source-topic sensors --input telegraf.toml
tidecast route --source-topic sensors --input telegraf.toml --input-topic readings --http-port 9107
tidecast topics create --source-topic sensors"""

_KAFKA = (
    *("input", "input_topic", "dead_letter_topic", "delivery", "start", "commit_interval_ms", "accept_gap", "instance"),
    *("session_timeout_seconds", "max_poll_records"),
)
_GROUPS = ("HTTP", "Process")
_MODEL = ("model", "model_sha256", "model_max_bytes")
_DEAD_LETTERS = ("dead_letter_limit", "dead_letter_window_seconds")


def configure(parser: argparse.ArgumentParser) -> None:
    """The two topics, the settings of a worker, and those of the process."""
    process = (name for name, f in settings.FIELDS.items() if f.group in _GROUPS)
    route = ("source_topic", "route_group")
    loader.add_flags(parser, *route, *settings.CONNECTION, *_KAFKA, *_MODEL, *_DEAD_LETTERS, *process)


def run(args: argparse.Namespace) -> int:
    """Route until the process is stopped; the exit code."""
    began = time.monotonic()
    found = loader.resolve(loader.flags_of(args), os.environ)
    given = settings.Settings(**{name: value for name, (value, _) in found.items()})
    if not given.source_topic:
        raise UsageError("no source topic is named", do="Name the topic that you have: --source-topic NAME")
    config = given.for_route()
    worker_run.begin(config)

    from tidecast.service.broker.connect import connect_from_settings
    from tidecast.service.input.config import InputConfig, read_input
    from tidecast.service.input.rejected import DeadLetterReason
    from tidecast.service.model.session import Model
    from tidecast.service.observability.metrics import Metrics
    from tidecast.service.worker.gc_pacer import GcPacer
    from tidecast.service.worker.router import Router
    from tidecast.service.worker.worker import Worker

    table = read_input(config.input) if config.input else InputConfig()
    features = None
    if found["model"][1] != "default":
        model = Model.load(config.model, max_bytes=config.model_max_bytes, sha256=config.model_sha256 or None)
        features = model.spec.features
    log.info(
        "routing",
        extra={
            "source": config.input_topic,
            "to": config.output_topic,
            "series": table.key,
            "features": features or list(table.feature_fields or {}) or "all numbers",
        },
    )
    if table.join_of(features=2) is not None:
        log.warning("parts of readings are not joined here: give `tidecast serve` a table that has only [input.join]")
    tracing, gc_pacer, metrics = worker_run.open_tracing(config), GcPacer(), Metrics(None, DeadLetterReason)
    broker = connect_from_settings(config, worker=True)
    try:
        router = Router(config, table, features)
        worker = Worker(config, router, broker, metrics, between_batches=gc_pacer.between_batches, tracing=tracing)
        return worker_run.run_worker(config, worker, metrics, gc_pacer, began)
    finally:
        broker.close()
        tracing.close()
