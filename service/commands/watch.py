"""`tidecast watch`: the live page."""

from __future__ import annotations

import argparse

from tidecast.service.config import loader, settings
from tidecast.service.errors import TidecastError
from tidecast.service.observability import logs

HELP = """\
Serve the live page: a web page that shows readings and forecasts as they arrive.

Reads the newest records of both topics, without a consumer group, and changes nothing. It listens on this machine only,
unless --watch-host says otherwise; then give it a password, in a file."""
EXAMPLE = """\
tidecast watch
tidecast watch --bootstrap-servers kafka:9092 --input-topic sensors --watch-port 8080
tidecast watch --watch-host 0.0.0.0 --watch-password-file page-password"""

_KAFKA = (*settings.CONNECTION, "input_topic", "input", "output_topic")
_PROCESS = ("log_level", "log_format")


def configure(parser: argparse.ArgumentParser) -> None:
    """Where Kafka is, and the page's own settings."""
    own = (name for name in settings.FIELDS if name.startswith("watch_"))
    loader.add_flags(parser, *_KAFKA, *own, *_PROCESS)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM; the exit code."""
    config = loader.from_args(args)
    logs.setup(config.log_level, config.log_format)
    try:
        from tidecast.service.watch.server import run as serve
    except ModuleNotFoundError as missing:
        raise TidecastError(
            f"the live page needs {missing.name}", do="Install it: pip install 'tidecast[watch]'"
        ) from None
    return serve(config)
