"""`tidecast serve`: one worker of a consumer group, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import signal
import time

import msgspec

from tidecast.service.commands import worker_run
from tidecast.service.config import loader, settings
from tidecast.service.model.starter_url import local_model

log = logging.getLogger("tidecast.serve")

HELP = """\
Answer readings with forecasts: read the input topic as a member of a consumer group, write to the output topic.

Ends on SIGTERM or Ctrl-C: what was read is answered and committed, and the group is left. A second Ctrl-C ends it at
once. A newer model that replaces the --model file takes over while readings are answered; SIGHUP looks for one at once.
SIGUSR1 prints the stack of every thread."""
EXAMPLE = """\
tidecast serve --model model
tidecast serve --model "starter:step=1h&features=temp,humidity&target=temp&horizon=24h"    # no training
tidecast serve --model model --bootstrap-servers kafka:9092 --input-topic sensors --http-host 0.0.0.0
curl http://127.0.0.1:9108/readyz"""

_NOT_SERVED = ("Embedded broker", "Live page", "Route")  # groups


def configure(parser: argparse.ArgumentParser) -> None:
    """Every setting but those of the embedded broker, of the live page and of `tidecast route`."""
    served = (name for name, f in settings.FIELDS.items() if f.group not in _NOT_SERVED)
    loader.add_flags(parser, *served)


def run(args: argparse.Namespace) -> int:
    """Load and check the model, then serve; the exit code."""
    began = time.monotonic()
    config = loader.from_args(args)
    worker_run.begin(config)
    config = msgspec.structs.replace(config, model=local_model(config.model))

    # Imported here: `tidecast serve --help` need not wait for onnxruntime.
    from tidecast.service.worker.model_watcher import ModelWatcher

    watcher = ModelWatcher(config)  # another process checks the model while this one imports
    from tidecast.service.broker.connect import connect_from_settings
    from tidecast.service.champion.follower import DecisionFollower
    from tidecast.service.champion.policy import ChampionPolicy
    from tidecast.service.input.rejected import DeadLetterReason
    from tidecast.service.observability.metrics import Metrics
    from tidecast.service.worker.gc_pacer import GcPacer
    from tidecast.service.worker.promotion import NOBODY
    from tidecast.service.worker.worker import Worker

    tracing, gc_pacer = worker_run.open_tracing(config), GcPacer()
    model = watcher.load()
    log.info(
        "model loaded",
        extra={"model": model.spec.id, "targets": model.spec.targets, "horizon": model.spec.horizon},
    )
    for shadow in watcher.shadows:
        log.info("shadow loaded", extra={"model": shadow.spec.id})
    metrics = Metrics(model.spec, DeadLetterReason)
    broker = connect_from_settings(config, worker=True)  # which contacts nobody yet

    unreadable = metrics.ignored_decisions.labels("unreadable")
    follower = DecisionFollower(broker, config, unreadable.inc) if config.decides else None
    policy = NOBODY if follower is None else ChampionPolicy(config, follower, metrics)

    def watch() -> None:
        if follower is not None:
            follower.start()
        signal.signal(signal.SIGHUP, lambda signum, frame: watcher.check_now())
        watcher.start(metrics.model_swaps.labels("refused").inc)

    try:
        worker = Worker(config, model, broker, metrics, watcher.take_newer, gc_pacer.between_batches, tracing,
                        shadows=watcher.shadows, policy=policy)  # fmt: skip
        return worker_run.run_worker(config, worker, metrics, gc_pacer, began, watch)
    finally:
        watcher.stop()
        if follower is not None:
            follower.stop()
        broker.close()
        tracing.close()
