"""A storm over two groups: routers bring a topic with null keys to the readings, workers answer these.

Each series is in one partition of the source, so that its readings keep their order on the whole way, and the verifier
of the workers can do its part. It reads what was routed; `judge_routing` compares that with the source.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tests.chaos.feed import feed
from tests.chaos.fleet import Fleet, Router
from tests.chaos.lookout import Lookout
from tests.chaos.readings import Record
from tests.chaos.report import Report
from tests.chaos.storm import SESSION_SECONDS, Storm
from tests.chaos.topics import Names, read_all
from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import Broker
from tidecast.service.model.spec import ModelSpec

SOURCE, DEAD_LETTERS, GROUP = "source", "route-dead-letters", "storm-route"
TABLE = """
[input]
key = "sensor"
time = "at"
[input.fields]
"""

Reading = tuple[int, dict[str, float], int]  # ts, features that are there, the record's timestamp


def enveloped(records: Iterator[tuple[bytes, bytes]], partitions: int) -> Iterator[tuple[None, bytes, None, int]]:
    """The records of `feed` as a topic with null keys has them; what is no reading stays as it is."""
    for key, value in records:
        try:
            found = json.loads(value)
            reading = isinstance(found, dict) and type(found.get("ts")) is int
        except ValueError:
            reading = False
        if reading:
            value = json.dumps({"sensor": key.decode(), "at": found.pop("ts"), "fields": found}).encode()
        yield None, value, None, int(key.decode().rpartition("-")[2]) % partitions


class RouteStorm(Storm):
    """`routers` of the scenario are in a group of their own; each misfortune meets one of the two groups."""

    def _make_topics(self, broker: Broker) -> None:
        super()._make_topics(broker)
        broker.create_topic(SOURCE, self.scenario.sources)
        broker.create_topic(DEAD_LETTERS, 1)

    def _start(self) -> None:
        folder = self.folder / "route"
        folder.mkdir()
        table = self.folder / "input.toml"
        fields = "\n".join(f'{name} = "fields.{name}"' for name in self.models[0].spec.features)
        table.write_text(TABLE + fields + "\n")
        s = self.scenario
        flags = [
            f"--bootstrap-servers={self.kafka.bootstrap_servers}",
            f"--source-topic={SOURCE}",
            f"--input={table}",
            f"--input-topic={self.names.readings}",
            f"--dead-letter-topic={DEAD_LETTERS}",
            f"--route-group={GROUP}",
            f"--delivery={s.delivery}",
            f"--commit-interval-ms={s.commit_interval_ms}",
            f"--max-poll-records={s.max_poll_records}",
            "--http-port=0",
            "--dead-letter-limit=0",
            f"--session-timeout-seconds={SESSION_SECONDS}",
            f"--client={s.client}",
        ]
        self.groups = {self.group: self.fleet, GROUP: Fleet(folder, flags, kind=Router)}
        self.fleets = [*self.groups.values()]
        self.source = Lookout(self.broker, Names(SOURCE, self.names.readings, DEAD_LETTERS), GROUP, s.sources)
        for slot in range(s.routers):
            self.groups[GROUP].start(slot)
        super()._start()
        self.groups[GROUP].settle(s.sources)

    def _feed(self) -> None:
        s = self.scenario
        self.feed_too(enveloped(feed(self.models[0].spec, s.series, s.seed), s.sources), s.rate)

    def feed_too(self, records: Iterator[Any], rate: float) -> bool:
        """To the source."""
        return self._feed_into(SOURCE, records, rate)

    def _aim(self) -> None:
        self.group = self.rng.choice(list(self.groups))
        self.fleet = self.groups[self.group]
        self.say(f"the next one meets {self.group}")

    def _drain(self) -> None:
        self.drain(self.source)
        self.say("all is routed")
        super()._drain()

    def _verdict(self) -> Report:
        report = super()._verdict()
        records = {topic: read_all(self.broker, topic) for topic in (SOURCE, self.names.readings, DEAD_LETTERS)}
        judge_routing(*records.values(), self.models[0].spec, self.scenario.partitions, report)
        return report


def judge_routing(
    source: Sequence[Record],
    routed: Sequence[Record],
    dead_letters: Sequence[Record],
    spec: ModelSpec,
    partitions: int,
    report: Report,
) -> None:
    """Each record of the source once among the routed or the dead letters, each series in its order."""
    expected: dict[bytes, list[Reading]] = {}
    bad: Counter[tuple[int, int, bytes | None]] = Counter()
    for record in source:
        found = _parse(record.value)
        if found is None or "sensor" not in found:
            bad[record.partition, record.offset, record.value] += 1
        else:
            values = {name: value for name, value in found["fields"].items() if value is not None}
            expected.setdefault(found["sensor"].encode(), []).append((found["at"], values, record.timestamp))
    got: dict[bytes, list[Reading]] = {}
    for record in routed:
        found = _parse(record.value) or {}
        values = {name: found[name] for name in spec.features if found.get(name) is not None}
        got.setdefault(record.key or b"", []).append((found.get("ts", 0), values, record.timestamp))
        if record.partition != partition_for(record.key or b"", partitions):
            report.add("routed to another partition", f"{record.key!r} to {record.partition}")
    for key in expected.keys() | got.keys():
        wanted, have = expected.get(key, []), got.get(key, [])
        if wanted == have:
            continue
        counts = [Counter(map(repr, each)) for each in (wanted, have)]
        for kind, left in (
            ("not routed", counts[0] - counts[1]),
            ("routed, and never sent so often", counts[1] - counts[0]),
        ):
            for reading in left.elements():
                report.add(kind, f"{key!r}: {reading}")
        if counts[0] == counts[1]:
            report.add("routed out of order", repr(key))
    letters: Counter[tuple[int, int, bytes | None]] = Counter()
    for record in dead_letters:
        h = record.headers
        letters[int(h["tidecast.partition"]), int(h["tidecast.offset"]), record.value] += 1
    for what in (bad - letters).elements():
        report.add("dead letters of the routers missing", repr(what))
    for what in (letters - bad).elements():
        report.add("dead letters of the routers doubled, or of no bad record", repr(what))
    report.dead_letters += len(dead_letters)


def _parse(value: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(value or b"")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
