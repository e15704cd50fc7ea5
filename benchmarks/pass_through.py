"""What a Kafka client costs by itself: readings go from topic to topic as they are, committed as a worker commits them.

A process of `benchmarks/end_to_end.py`; ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

from tidecast.service.broker.connect import connect
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.config.settings import default
from tidecast.service.worker.delivery import AtLeastOnce, Delivery, ExactlyOnce

TIMEOUT_S = 60.0


def main() -> None:
    """Copy for ever."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bootstrap-servers", "client", "delivery", "input-topic", "output-topic", "group"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    broker = connect(args.bootstrap_servers, client=args.client)
    delivery: Delivery = AtLeastOnce(broker, TIMEOUT_S)
    if args.delivery == "exactly-once":
        make = partial(broker.producer, transactional_id=args.group)
        delivery = ExactlyOnce(make, args.input_topic, TIMEOUT_S)
    consumer = broker.consumer(group=args.group)
    consumer.subscribe(args.input_topic, lambda new: None, lambda gone: None)
    pending: dict[int, tuple[int, str]] = {}
    due, interval, most = 0.0, default("commit_interval_ms") / 1_000, default("max_poll_records")
    while True:
        batch = consumer.poll(max(0.0, due - time.monotonic()) if pending else 0.2, most)
        n = len(batch)
        if n and not pending:
            due = time.monotonic() + interval
        none: list[int | None] = [None] * n
        delivery.emit(
            OutgoingBatch(args.output_topic, [*batch.partitions], batch.keys, batch.values, batch.headers, none)
        )
        pending |= {partition: (offset, "") for partition, offset in batch.next_offsets.items()}
        if pending and (not n or time.monotonic() >= due):
            delivery.flush(TIMEOUT_S)
            delivery.commit(pending, consumer, wait=delivery.blocks_emit)  # as the worker, where that is possible
            pending.clear()


if __name__ == "__main__":
    main()
