"""Prepares the demo: a model, and an embedded Kafka."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

from tidecast.service.broker.embedded import jars
from tidecast.service.demo.children import command
from tidecast.service.errors import TidecastError, UsageError


def sample(name: str) -> Path:
    """Path of a sample file, found without importing the trainer.

    Raises:
        UsageError: the trainer is not installed.
    """
    spec = importlib.util.find_spec("tidecast.training")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "samples" / name
        if path.is_file():
            return path
    raise UsageError(f"the sample {name} is not installed", do="Run: pip install 'tidecast[train]', or give --data.")


def train(model: Path, *, own_kafka: bool) -> Path:
    """Train on the sample, unless an earlier demo did. With `own_kafka`, Kafka is downloaded meanwhile.

    Raises:
        TidecastError: the training failed; its own message is on stderr.
    """
    if (model / "model.onnx").is_file() and (model / "config.toml").is_file():
        say(f"using the model that an earlier demo trained: {model} (delete it to train again)")
        return model
    if own_kafka:
        _fetch_kafka()
    say("training on a year of hourly weather at three airports, to forecast the temperature 1 to 24 hours ahead")
    say("this takes one to two minutes on two cores; the model is kept for the next time")
    process = subprocess.Popen(command("train", str(sample("weather.toml")), "--out", str(model)), stdout=sys.stderr)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        raise TidecastError(f"the training ended with exit code {code}", do="See its message above.")
    return model


def _fetch_kafka() -> None:
    """Download Kafka in the background. If that fails, starting Kafka tries again and reports the error."""

    def fetch() -> None:
        with contextlib.suppress(TidecastError):
            jars.classpath(lambda progress: None)

    if not jars.cached():
        say("downloading Kafka from Maven Central in the background (only the first time, about 45 MB)")
        threading.Thread(target=fetch, name="fetch-kafka", daemon=True).start()


def start_kafka(folder: Path, stack: contextlib.ExitStack) -> str:
    """Start the demo's own Kafka, which stops with the stack; returns its bootstrap servers.

    Raises:
        BrokerError: it could not be downloaded or started.
        UsageError: the extra `broker` is not installed.
    """
    from tidecast.service.broker.embedded.server import EmbeddedBroker

    kafka = EmbeddedBroker(folder / "kafka", port=0)
    stack.callback(kafka.stop)
    kafka.start(say)
    return kafka.bootstrap_servers


def say(text: str) -> None:
    """Print a message of the demo on stderr."""
    print(f"demo: {text}", file=sys.stderr, flush=True)
