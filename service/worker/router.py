"""What `tidecast route` has in place of models: readings are written as they are, to the partition of their series.

It keeps nothing: a worker that starts continues from the committed offset.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.config.settings import Settings
from tidecast.service.input.config import InputConfig
from tidecast.service.input.mapping import InputMapper, MappedBatch
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected
from tidecast.service.pipeline.batch import BatchCounts, BatchResult
from tidecast.service.pipeline.dead_letters import forecast_headers, write_dead_letters
from tidecast.service.pipeline.encode import RecordPositions, encode_readings
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.served_models import ServedModels


class Router:
    """Maps records to readings, and writes them to the topic that `serve` reads. For the worker's thread.

    Args:
        settings: of the worker, from `Settings.for_route`.
        config: the [input] table.
        features: the only ones to write; None = those that the table names, or all numbers of a record.

    Raises:
        TidecastError: the table cannot be used.
    """

    def __init__(self, settings: Settings, config: InputConfig, features: Sequence[str] | None) -> None:
        self._settings, self._mapper = settings, InputMapper(config, features)
        self._named = features is not None or config.feature_fields is not None

    def prepare(self, batch: Batch) -> None:
        """Fetch what is needed to decode the batch; raises as `InputMapper.prepare`."""
        self._mapper.prepare(batch)

    def process(self, batch: Batch) -> list[BatchResult]:
        """The readings of a batch, and its dead letters. A record without a value removes its series."""
        began = time.perf_counter()
        mapped = self._mapper.map(batch)
        rejected = self._rejected(mapped)
        mapped_at = time.perf_counter()
        counts = BatchCounts()
        counts.count_input(mapped)
        rows, routed = mapped.batch, self._write(mapped, rejected)
        group, topic = self._settings.group, self._settings.dead_letter_topic
        dead_letters, dead = write_dead_letters(mapped, sorted(rejected.items()), topic=topic, group=group)
        for row in dead:
            counts.dead_letters[rejected[row].reason] += 1
        counts.tombstones = len(mapped.readings.tombstones)
        counts.routed = len(routed) - counts.tombstones
        counts.readings = counts.routed + len(dead)
        written = np.delete(np.arange(len(rows)), list(rejected))
        partitions, offsets = np.array(rows.partitions, dtype=np.int32), np.array(rows.offsets, dtype=np.int64)
        counts.stage_seconds = {"decode": mapped_at - began, "encode": time.perf_counter() - mapped_at}
        return [
            BatchResult(
                forecasts=routed,
                dead_letters=dead_letters,
                counts=counts,
                scores=np.empty((0, 0), dtype=np.float32),
                event_times=np.empty(0, dtype=np.int64),
                positions=RecordPositions(batch.topic, partitions[written], offsets[written]),
                spec=None,
                partitions=partitions,
                timestamps=np.array(rows.timestamps, dtype=np.int64),
            )
        ]

    def _rejected(self, mapped: MappedBatch) -> dict[int, RecordRejected]:
        """Row -> why it cannot be written."""
        rejected = dict(mapped.readings.rejected)
        for row in np.flatnonzero(np.isnan(mapped.readings.x).all(axis=1)).tolist() if not self._named else ():
            if row not in mapped.readings.tombstones:
                message = "the reading has no number: all of its values are missing"
                rejected.setdefault(row, RecordRejected(DeadLetterReason.NO_FEATURES, message))
        return rejected

    def _write(self, mapped: MappedBatch, rejected: Mapping[int, RecordRejected]) -> OutgoingBatch:
        values: list[bytes | None] = [*encode_readings(mapped.features, mapped.readings.ts, mapped.readings.x)]
        for row in mapped.readings.tombstones:
            values[row] = None
        rows = mapped.batch
        if rejected:
            kept = [row for row in range(len(rows)) if row not in rejected]
            rows, values = rows.take(kept), [values[row] for row in kept]
        return OutgoingBatch(
            topic=self._settings.output_topic,
            partitions=[None] * len(rows),  # by the key
            keys=[*rows.keys],
            values=values,
            headers=forecast_headers(rows.headers),
            timestamps=[stamp if stamp > 0 else None for stamp in rows.timestamps],
        )

    # As `ServedModels`, with no states ------------------------------------------------------------------------

    def replay(self, partition: int, until: int) -> None:
        """Nothing: there are no states to bring up to date."""

    def revoke(self, partitions: Collection[int]) -> None:
        """Nothing: nothing is remembered of a partition."""

    def due(self, everything_of: Collection[int] = (), without: Collection[int] = ()) -> Iterator[OutgoingBatch]:
        """No changelog records."""
        return iter(())

    def worthwhile(self) -> bool:
        """False: no states are due."""
        return False

    def anything_due(self) -> bool:
        """False: no states are due."""
        return False

    def offsets_to_commit(self, offsets: Mapping[int, int]) -> dict[int, Committed]:
        """The offsets as they are."""
        return {partition: Committed(offset) for partition, offset in offsets.items()}

    def series(self, key: str) -> dict[str, Any] | None:
        """None: nothing is remembered of any series."""
        return None

    def series_counts(self, partitions: Collection[int], *, unwritten: bool = False) -> dict[int, int]:
        """Of no partition."""
        return {}


Work = ServedModels | Router  # what a worker does with the records that it reads
