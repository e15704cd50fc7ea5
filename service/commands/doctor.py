"""`tidecast doctor`: looks at all that a worker needs, and says what is wrong and what fixes it."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from tidecast.service.commands.serve import configure
from tidecast.service.config import loader, settings
from tidecast.service.config.secrets import masked
from tidecast.service.config.settings import Settings

if TYPE_CHECKING:
    from tidecast.service.doctor.patient import State
    from tidecast.service.input.config import InputConfig
    from tidecast.service.worker.served_model import ServedModel

__all__ = ["EXAMPLE", "HELP", "configure", "run"]

HELP = """\
Find out why a worker does not start, or does not answer: Kafka, rights, topics, and the newest 1,000 readings.

Give it the flags of `tidecast serve`. Each line begins with ok, with note (it works, and may surprise), or with wrong,
and then says what to do. Without --model it is not checked what a model makes of the readings.
It writes nothing to Kafka: it makes no topic, joins no group, commits no offset and begins no transaction. It asks who
coordinates transactions; when anybody asks that for the first time, Kafka makes an internal topic for them.
A check takes a few seconds, or --broker-timeout-seconds where Kafka does not answer.
Exit codes: 0 = nothing is wrong, 1 = something is, 2 = wrong usage."""
EXAMPLE = """\
tidecast doctor
tidecast doctor --bootstrap-servers kafka:9092 --input-topic sensors --model model"""


def run(args: argparse.Namespace) -> int:
    """Print what is found; 1 if something is wrong."""
    config = loader.from_args(args)

    from tidecast.service.broker.connect import connect_from_settings, questions_from_settings
    from tidecast.service.doctor.examine import examine
    from tidecast.service.doctor.patient import Patient, State
    from tidecast.service.input.config import read_input

    input_config = read_input(config.input) if config.input else None
    given = args.model is not None or settings.variable("model") in os.environ
    broker = connect_from_settings(config, worker=True)
    other, questions = questions_from_settings(config)
    counts: Counter[State] = Counter()
    not_checked: dict[str, list[str]] = {}  # reason -> checks
    try:
        for state, check, text in examine(
            Patient(config, broker, questions, (lambda: _load(config, input_config)) if given else None, input_config)
        ):
            counts[state] += 1
            if state is State.NOT_CHECKED:
                not_checked.setdefault(text, []).append(check)
            else:
                _print(state, check, text)
    finally:
        broker.close()
        other.close()
    for reason, checks in not_checked.items():
        _print(State.NOT_CHECKED, ", ".join(checks), reason)
    print(f"{', '.join(f'{counts[state]} {state}' for state in State)}. Nothing was written to Kafka.")
    return 1 if counts[State.WRONG] else 0


def _print(state: State, check: str, text: str) -> None:
    print(f"{state:<11}  {check}: {masked(text)}", flush=True)


def _load(config: Settings, input_config: InputConfig | None) -> ServedModel:
    from tidecast.service.model.session import Model
    from tidecast.service.model.starter_url import local_model
    from tidecast.service.worker.served_model import ServedModel

    model = Model.load(
        local_model(config.model),
        max_bytes=config.model_max_bytes,
        intra_op_threads=config.intra_op_threads,
        sha256=config.model_sha256 or None,
    )
    return ServedModel(config, [model], time.monotonic, input_config)
