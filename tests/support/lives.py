"""Lives of a worker's process, and what outlives it: for tests that end it anywhere."""

from __future__ import annotations

from tests.support.streams import Sent, cut, model
from tidecast.service.broker.port import Batch
from tidecast.service.input.config import InputConfig
from tidecast.service.pipeline.pipeline import BatchResult, Pipeline, Policy
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import RollingFlush

PARTITIONS = 2


class Kafka:
    """What outlives a process: the changelog, compacted, and of each partition the committed and snapshot offset."""

    def __init__(self, records: list[Sent]) -> None:
        self.records = records
        self.changelog: dict[tuple[int, bytes], bytes] = {}
        self.committed: dict[int, tuple[int, int]] = {}
        self.results: list[BatchResult] = []


class Process:
    """One life of a worker."""

    def __init__(self, kafka: Kafka, policy: Policy, seconds: float, config: InputConfig | None = None) -> None:
        self.kafka, self.now = kafka, 0.0
        self.line = Pipeline(model(), policy, output_topic="forecasts", dead_letter_topic="dead-letters",
                             input_config=config)  # fmt: skip
        self.codec = Codec(model().spec)
        self.flush = RollingFlush(self.line.store, self.codec, topic="states", group="g", seconds=seconds,
                                  bytes_per_second=1e9, clock=lambda: self.now)  # fmt: skip
        self.tentative: list[BatchResult] = []
        for (partition, key), value in kafka.changelog.items():
            self.line.store.restore([key], partition, self.codec.decode_many([value]))
        for partition, (committed, snapshot) in kafka.committed.items():
            self.line.replay(partition, committed)
            for offset in range(snapshot, committed):
                if kafka.records[offset].partition == partition:
                    again = self.line.process(self.batch(offset))
                    assert not len(again.forecasts), "a replayed reading was answered again"
                    assert not len(again.dead_letters), "a replayed record became a dead letter again"

    def batch(self, offset: int) -> Batch:
        batch = cut([self.kafka.records[offset]], [])[0]
        batch.offsets = [offset]
        return batch

    def process(self, batch: Batch) -> None:
        self.now += 1.0
        self.tentative.append(self.line.process(batch))

    def commit(self, offset: int, everything: bool) -> None:
        """All or nothing: the records due, the offsets, the answers."""
        kafka, partitions = self.kafka, range(PARTITIONS)
        for out in self.flush.due(partitions if everything else ()):
            for key, value, partition in zip(out.keys, out.values, out.partitions, strict=True):
                assert key is not None and partition is not None
                if value is None:
                    kafka.changelog.pop((partition, key), None)
                else:
                    kafka.changelog[partition, key] = value
        offsets = dict.fromkeys(partitions, offset)
        kafka.committed = {p: (offset, s) for p, s in self.flush.snapshot_offsets(offsets).items()}
        kafka.results += self.tentative
        self.tentative = []


def lives(
    stream: list[Sent],
    policy: Policy,
    seconds: float,
    sizes: list[int],
    fortunes: list[str],
    config: InputConfig | None = None,
) -> tuple[Kafka, Process]:
    """What a stream leaves behind, cut into batches of these sizes, each followed by one of `fortunes`.

    They are used up from their ends: "continue", "commit", "commit all" or "crash", then commits only. The process is a
    new one: what a last restore finds.
    """
    kafka = Kafka(stream)
    process = Process(kafka, policy, seconds, config)
    offset, luck, cuts = 0, list(fortunes), list(sizes)
    while offset < len(stream):
        size = cuts.pop() if cuts else 3
        part = stream[offset : offset + size]
        batch = cut(part, [])[0]
        batch.offsets = list(range(offset, offset + len(part)))
        process.process(batch)
        offset += len(part)
        fortune = luck.pop() if luck else "commit"
        if fortune.startswith("commit"):
            process.commit(offset, everything=fortune == "commit all")
        elif fortune == "crash":
            process = Process(kafka, policy, seconds, config)
            offset = max((committed for committed, _ in kafka.committed.values()), default=0)
    process.commit(offset, everything=False)
    return kafka, Process(kafka, policy, seconds, config)
