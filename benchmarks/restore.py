"""What a restore costs for each series, apart from Kafka: records out of their bytes, and states into the table.

    python benchmarks/restore.py [--series 100000] [--state 264] [--runs 5] [--json]

CPU time of this process, the median of the runs, which take turns. The first row is kafka-python's way from a
fetched response to records; the second is all that follows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import numpy as np
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from memory import make_model
from worker_process import PATIENCE

from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import Broker, OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import GROUP_HEADER
from tidecast.service.state.store import SeriesStore
from tidecast.service.worker.partition import Partition
from tidecast.service.worker.restore import Restore
from tidecast.service.worker.served_models import ServedModels

PARTITIONS, AT_ONCE = 4, 10_000
FETCHED = 2_000  # records of one response: those of 2 MB
TIME_MS = 1_700_000_000_000


def changelog(model: Model, series: int, settings: Settings) -> Iterator[OutgoingBatch]:
    """A record for each series, some at a time."""
    codec, rng = Codec(model.spec), np.random.default_rng(0)
    for start in range(0, series, AT_ONCE):
        numbers = np.arange(start, min(start + AT_ONCE, series))
        out = OutgoingBatch(settings.changelog_topic)
        states = rng.standard_normal((len(numbers), codec.state_size)).astype(np.float32)
        for i, value in zip(numbers.tolist(), codec.encode(numbers, numbers, numbers, numbers, states), strict=True):
            group = [(GROUP_HEADER, settings.group.encode())]
            out.append(b"sensor-%d" % i, value, partition=i % PARTITIONS, headers=group)
        yield out


def responses(records: Iterator[OutgoingBatch]) -> Iterator[bytes]:
    """The same as Kafka sends it."""
    for out in records:
        for start in range(0, len(out), FETCHED):
            builder = MemoryRecordsBuilder(2, 0, 1 << 30)
            for i in range(start, min(start + FETCHED, len(out))):
                builder.append(timestamp=TIME_MS, key=out.keys[i], value=out.values[i], headers=[*out.headers[i]])
            builder.close()
            yield bytes(builder.buffer())


def unpack(fetched: list[bytes]) -> tuple[int, float]:
    """Records, and the seconds that they took."""
    n, began = 0, process_time()
    for data in fetched:
        found = Fetcher.PartitionRecords(
            0, TopicPartition("c", 0), MemoryRecords(data), isolation_level=IsolationLevel.READ_COMMITTED
        )
        n += len(found.take(FETCHED))
    return n, process_time() - began


def fill(broker: Broker, model: Model, series: int, settings: Settings) -> None:
    """The topics, a state of each series, and a commit that fits."""
    broker.create_topic(settings.input_topic, PARTITIONS)
    broker.create_topic(settings.changelog_topic, PARTITIONS, CHANGELOG_CONFIG)
    producer = broker.producer()
    for out in changelog(model, series, settings):
        producer.produce(out)
    producer.flush(PATIENCE)
    producer.close()
    consumer = broker.consumer(group=settings.group)
    consumer.assign(settings.input_topic, dict.fromkeys(range(PARTITIONS), 0))
    consumer.commit(dict.fromkeys(range(PARTITIONS), series), "")
    consumer.close()


@contextmanager
def restoring(
    broker: Broker, model: Model, settings: Settings, timed: Callable[[Callable[[], None]], None]
) -> Iterator[tuple[Callable[[], None], SeriesStore]]:
    """What restores it all, and the table that it fills. `timed` is to call what it is given: it takes a batch in."""
    consumer = broker.consumer(group=settings.group)
    consumer.assign(settings.input_topic, dict.fromkeys(range(PARTITIONS), 0))
    partitions = {number: Partition() for number in range(PARTITIONS)}
    models = ServedModels(settings, model, partitions, time.monotonic)
    restore = Restore(broker, settings, partitions, models, time.monotonic)
    apply = restore._apply
    restore._apply = lambda *given: timed(partial(apply, *given))  # type: ignore[method-assign]

    def run() -> None:
        while any(partition.restoring for partition in partitions.values()):
            restore.advance(consumer, 0.2)

    yield run, models.current.store
    restore.close()
    consumer.close()


def into_table(broker: MemoryBroker, model: Model, settings: Settings) -> tuple[int, float]:
    """Series, and the seconds that they took from a batch of records on."""
    took = 0.0

    def timed(apply: Callable[[], None]) -> None:
        nonlocal took
        began = process_time()
        apply()
        took += process_time() - began

    with restoring(broker, model, settings, timed) as (run, table):
        run()
    return len(table), took


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--state", type=int, default=264, help="float32 numbers, even")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        model = Model.load(maker.submit(make_model, Path(folder), args.state).result())
    broker, settings = MemoryBroker(), Settings()
    fill(broker, model, args.series, settings)
    fetched = [*responses(changelog(model, args.series, settings))]
    ways: dict[str, Callable[[], tuple[int, float]]] = {
        "records out of bytes, by kafka-python": lambda: unpack(fetched),
        "into the table": lambda: into_table(broker, model, settings),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.runs):
        for name, way in ways.items():
            n, took = way()
            if n != args.series:
                raise SystemExit(f"{name}: {n:,} of {args.series:,}")
            found[name].append(took / n * 1e6)
    us = {name: statistics.median(each) for name, each in found.items()}
    print(f"{args.series:,} series of {args.state} floats\n\n| | µs a series |\n|---|---|")
    for name, each in us.items():
        print(f"| {name} | {each:.2f} |")
    if args.json:
        records, table = us.values()
        print(json.dumps({"kafka_python_us": round(records, 2), "table_us": round(table, 2)}))


if __name__ == "__main__":
    main()
