"""What kafka-python costs as its own documentation has it: one `send` for each record, with all that makes it fast.

A process of `benchmarks/end_to_end.py`; `pass_through.py` does the same through the port of this project. A record
is sent to a partition that is given, in batches of 256 KiB; crc32c is installed. Ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import time

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata

from tidecast.service.config.settings import default


def main() -> None:
    """Copy for ever."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bootstrap-servers", "client", "delivery", "input-topic", "output-topic", "group"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    once = args.delivery == "exactly-once"
    servers = args.bootstrap_servers
    consumer = KafkaConsumer(
        args.input_topic,
        bootstrap_servers=servers,
        group_id=args.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    more = {"transactional_id": args.group} if once else {}
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=10, batch_size=256 << 10, **more)
    if once:
        producer.init_transactions()
    interval, most = default("commit_interval_ms") / 1_000, default("max_poll_records")
    due, offsets = 0.0, {}
    while True:
        left = max(0.0, due - time.monotonic()) if offsets else 0.2
        found = consumer.poll(timeout_ms=int(left * 1_000), max_records=most)
        if found and not offsets:
            due = time.monotonic() + interval
            if once:
                producer.begin_transaction()
        for tp, records in found.items():
            for record in records:
                producer.send(args.output_topic, record.value, record.key, partition=tp.partition)
            offsets[tp] = OffsetAndMetadata(records[-1].offset + 1, "", -1)
        if offsets and (not found or time.monotonic() >= due):
            if once:
                producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
                producer.commit_transaction()
            else:
                producer.flush()
                consumer.commit(offsets)
            offsets = {}


if __name__ == "__main__":
    main()
