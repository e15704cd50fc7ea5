"""`tidecast watch`: the live page."""

from __future__ import annotations

import argparse

from service import configuration, logs, settings
from service.errors import TidecastError

HELP = """\
Serve the live page: what is measured beside what was forecast, as it comes, for people to watch.

Reads both topics from their recent end, outside of any group, and changes nothing. It listens on this machine only,
unless --watch-host says otherwise; then give it a password, in TIDECAST_WATCH_PASSWORD."""
EXAMPLE = """\
tidecast watch
tidecast watch --bootstrap-servers kafka:9092 --input-topic sensors --watch-port 8080
TIDECAST_WATCH_PASSWORD=... tidecast watch --watch-host 0.0.0.0"""

_KAFKA = ("bootstrap_servers", "client", "input_topic", "output_topic", "broker_timeout_seconds")
_GROUPS = ("Kafka security", "Live page")
_PROCESS = ("log_level", "log_format")


def configure(parser: argparse.ArgumentParser) -> None:
    """Where Kafka is, and the page's own settings."""
    own = (name for name, f in settings.FIELDS.items() if f.metadata["group"] in _GROUPS)
    configuration.add_flags(parser, *_KAFKA, *own, *_PROCESS)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM; the exit code."""
    config = configuration.from_args(args)
    logs.setup(config.log_level, config.log_format)
    try:
        from service.watch.run import run as serve
    except ModuleNotFoundError as missing:
        raise TidecastError(
            f"the live page needs {missing.name}", do="Install it: pip install 'tidecast[watch]'"
        ) from None
    return serve(config)
