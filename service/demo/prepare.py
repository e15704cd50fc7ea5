"""Prepares the demo: its two models, and an embedded Kafka."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
import threading
import tomllib
from pathlib import Path
from urllib.parse import urlencode

from tidecast.service.broker.embedded import jars
from tidecast.service.demo.children import Child
from tidecast.service.errors import TidecastError, UsageError
from tidecast.service.model.starter_url import SCHEME, local_model


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


def make_starter(*, own_kafka: bool) -> Path:
    """Make a model that needs no training, unless an earlier demo did. With `own_kafka`, Kafka is downloaded meanwhile.

    Raises:
        ModelError: that failed.
    """
    if own_kafka:
        _fetch_kafka()
    say("making a starter: a model without any training, which learns each station from its readings (some seconds)")
    data, shape = (tomllib.loads(sample("weather.toml").read_text("utf-8"))[name] for name in ("data", "model"))
    wanted = {
        "step": data["step"],
        "features": ",".join([*data["targets"], *data["covariates"]]),
        "target": ",".join(data["targets"]),
        "horizon": str(shape["horizon"]),
        "time": data["time"],
        "series": data["series"],
    }
    return Path(local_model(SCHEME + urlencode(wanted)))


class Training:
    """Trains on the sample in the background, unless an earlier demo did.

    Args:
        folder: gets the directory `model`, once it is complete, and the log.

    Attributes:
        model: that directory.
        child: the process, None where there is nothing to do.
    """

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        self._draft = folder / "model.draft"
        self.child: Child | None = None
        if (self.model / "model.onnx").is_file() and (self.model / "config.toml").is_file():
            say(f"an earlier demo trained a model: {self.model} (delete it to train again)")
            return
        shutil.rmtree(self._draft, ignore_errors=True)
        shutil.rmtree(self.model, ignore_errors=True)
        say("training a model on the rows before the live part, in the background (about a minute on two cores)")
        self.child = Child("trainer", folder, "train", str(sample("weather.toml")), "--out", str(self._draft))

    def ready(self) -> bool:
        """Whether the model is there now.

        Raises:
            TidecastError: the training failed; the text contains the end of its log.
        """
        if self.child is not None and self.child.ended():
            self.child = None
            self._draft.rename(self.model)  # complete, or not there
        return self.child is None

    def stop(self) -> None:
        """End it, if it still runs."""
        if self.child is not None:
            self.child.stop(5.0)


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
