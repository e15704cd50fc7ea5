"""`tidecast broker`: a real Kafka in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.config import loader, settings
from tidecast.service.errors import BrokerError
from tidecast.service.stop_flag import StopRequested, raise_on_signals

HELP = """\
Run a real Apache Kafka on this machine, in the foreground: no Docker, no Java to install.

The first start on a machine downloads Kafka (about 45 MB). Prints `bootstrap.servers HOST:PORT` on stdout when Kafka
answers. Stop it with SIGTERM or Ctrl-C. Its data is kept, also after a kill -9; Kafka itself ends with this command."""
EXAMPLE = """\
tidecast broker
tidecast broker --port 0 --data-dir /tmp/kafka"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Folder, port and heap."""
    parser.add_argument(
        "--data-dir",
        "--broker-data-dir",
        dest="broker_data_dir",
        metavar="DIR",
        help="where Kafka keeps its data [~/.local/share/tidecast/broker]",
    )
    parser.add_argument(
        "--port",
        "--broker-port",
        dest="broker_port",
        metavar="N",
        help=f"loopback port; 0 = any free one, kept for the same folder [{settings.default('broker_port')}]",
    )
    parser.add_argument("--heap-mb", type=int, default=512, metavar="N", help="Java's heap, MB [512]")


def run(args: argparse.Namespace) -> int:
    """Start Kafka, print its address, and wait for a signal.

    Raises:
        BrokerError: Kafka could not start, or it ended (with the end of its log).
    """
    config = loader.from_args(args)
    broker = EmbeddedBroker(Path(config.broker_data_dir).expanduser(), port=config.broker_port, heap_mb=args.heap_mb)

    with raise_on_signals():
        try:
            broker.start(_say)
            print(f"bootstrap.servers {broker.bootstrap_servers}", flush=True)
            _say(f"Kafka is ready; its log is {broker.log_file}. Ctrl-C stops it.")
            idle = threading.Event()
            while broker.alive():
                idle.wait(0.2)
            raise BrokerError(broker.how_it_ended())
        except StopRequested:
            _say("stopping Kafka")
            return 0
        finally:
            broker.stop()


def _say(message: str) -> None:
    print(f"tidecast: {message}", file=sys.stderr, flush=True)
