"""The path of a batch: records in, forecasts and dead letters out. No I/O, no clock of its own.

A batch has three forms. It arrives as a `Batch`, whose columns are Python lists, as the Kafka clients give them. It is
worked on as a `BatchWork`, whose columns are numpy arrays. It leaves as two `OutgoingBatch`, lists again, as the Kafka
clients take them. A row of any column is one record of the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.batch import BatchCounts, BatchResult, BatchWork
from tidecast.service.pipeline.dead_letters import (
    DeadLetterReason,
    RecordRejected,
    check_key,
    dead_letter_headers,
    forecast_headers,
)
from tidecast.service.pipeline.decode import ReadingDecoder
from tidecast.service.pipeline.encode import ForecastEncoder, RecordPositions
from tidecast.service.pipeline.policy import Outcome, Policy
from tidecast.service.pipeline.replay_filter import ReplayFilter
from tidecast.service.pipeline.segments import Segment, split_into_segments
from tidecast.service.pipeline.ttl_sweeper import TtlSweeper
from tidecast.service.pipeline.waves import WaveSteps, arrange_in_waves, first_of_series, newest_before, stable_order
from tidecast.service.state.store import SeriesStore
from tidecast.service.timestamps import format_time, missing_steps

__all__ = ["BatchCounts", "BatchResult", "Outcome", "Pipeline", "Policy"]

Int64 = NDArray[np.int64]

_MAX_CALL_ROWS = 1_024  # of a wave, in one call of the model: intermediate results then fit in the CPU cache


class Pipeline:
    """Turns batches into forecasts and keeps the state of every series between them. For one thread."""

    def __init__(
        self,
        model: Model,
        policy: Policy,
        *,
        output_topic: str,
        dead_letter_topic: str,
        store: SeriesStore | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        spec = model.spec
        self.store = store if store is not None else SeriesStore(model.initial_state, policy.max_series, spec.state)
        self._model, self._policy, self._timer = model, policy, timer
        self._output_topic, self._dead_letter_topic = output_topic, dead_letter_topic
        self._decoder = ReadingDecoder(spec.features)
        self._encoder = ForecastEncoder(spec)
        forecast = (spec.horizon, len(spec.targets), len(spec.quantiles))
        self._forecast_shape = (len(spec.classes),) if spec.kind == "classifier" else forecast
        self._split = partial(split_into_segments, self.store, policy.series_ttl_ms)
        self._sweeper = TtlSweeper(self.store, policy.series_ttl_ms)
        self._replay_filter = ReplayFilter(self.store)

    def process(self, batch: Batch) -> BatchResult:
        """Answer a batch: each reading with a forecast, unless it is late, a duplicate, or a dead letter.

        Changes nothing but the store. The same records give the same forecasts however they are cut into batches.

        Raises:
            ModelError: the runtime failed during a step; the store is inconsistent and must not be used any more.
        """
        started = self._timer()
        work = self._decode(batch)
        decoded = self._timer()
        for segment in self._split(work):  # nearly always one
            steps = self._plan_steps(work, segment)
            self._run_model(work, steps)
        self._sweeper.sweep(work)
        stepped = self._timer()
        result = self._encode(work)
        encoded = self._timer()
        seconds = {"decode": decoded - started, "step": stepped - decoded, "encode": encoded - stepped}
        work.counts.stage_seconds = seconds
        return result

    def revoke(self, partitions: Collection[int]) -> None:
        """Forget everything about partitions that another worker has now."""
        self.store.revoke(partitions)
        self._sweeper.revoke(partitions)
        self._replay_filter.revoke(partitions)

    def replay(self, partition: int, until: int) -> None:
        """The partition's states were restored; readings before the offset `until` were answered earlier."""
        self._replay_filter.begin(partition, until)

    def take_over(self, partition: int, older: Pipeline) -> None:
        """Answer the partition from the next record on; the series and their states are in this store already."""
        self._replay_filter.end(partition)
        self._sweeper.take_over(partition, older._sweeper)

    def _decode(self, batch: Batch) -> BatchWork:
        """Keys and values to columns. A record that is not a valid reading becomes a dead letter."""
        n = len(batch)
        readings = self._decoder.decode(batch.values)
        timestamps = np.array(batch.timestamps, dtype=np.int64)
        arrived = np.where(timestamps > 0, timestamps, readings.ts)
        work = BatchWork(
            batch=batch,
            readings=readings,
            partitions=np.array(batch.partitions, dtype=np.int32),
            offsets=np.array(batch.offsets, dtype=np.int64),
            timestamps=timestamps,
            slots=self.store.find_all(batch.keys),
            arrived=arrived,
            outcome=np.zeros(n, dtype=np.int8),
            warm=np.zeros(n, dtype=np.bool_),
            y=np.empty((n, *self._forecast_shape), dtype=np.float32),
            score=np.empty((n, len(self._model.spec.diagnostics)), dtype=np.float32),
            replayed=np.zeros(n, dtype=np.bool_),
        )
        if readings.tombstones:
            work.outcome[readings.tombstones] = Outcome.TOMBSTONE
        if self._policy.max_future_ms > 0:
            for record in (readings.ts - arrived > self._policy.max_future_ms).nonzero()[0].tolist():
                ts, timestamp = format_time(int(readings.ts[record])), format_time(int(timestamps[record]))
                message = f'"ts" is {ts}, too far ahead of the time of its record, {timestamp}'
                work.reject(record, RecordRejected(DeadLetterReason.TIME_OUT_OF_RANGE, message))
        for record, rejection in readings.rejected.items():
            work.reject(record, rejection)
        for record in (work.slots < 0).nonzero()[0].tolist():  # the keys of known series are valid
            try:
                check_key(batch.keys[record])
            except RecordRejected as rejection:
                work.reject(record, rejection)
        self._replay_filter.mark(work)
        return work

    def _plan_steps(self, work: BatchWork, segment: Segment) -> WaveSteps:
        """Put readings in the order of event time: find late ones, duplicates and gaps; arrange the rest in waves."""
        store, counts, step_ms = self.store, work.counts, self._model.spec.step_ms
        by_series = stable_order(segment.slots)
        records, slots = segment.records[by_series], segment.slots[by_series]  # [readings]
        first = first_of_series(slots)
        # Late readings and duplicates count too: the time at which a series was last seen is part of its saved state.
        store.mark_dirty(slots[first], work.offsets[records[first]])
        ts = work.readings.ts[records]
        previous = newest_before(slots, ts, store.last_ts[slots], first)
        following = ts > previous
        if np.count_nonzero(following) < len(ts):
            self._set_aside(work, records[ts < previous], previous[ts < previous], Outcome.LATE)
            self._set_aside(work, records[ts == previous], previous[ts == previous], Outcome.DUPLICATE)
            records, slots, ts, previous = records[following], slots[following], ts[following], previous[following]
            first = first_of_series(slots)
        gap = missing_steps(ts, previous, step_ms)
        restart = gap > self._policy.max_gap_steps
        imputed = np.where(restart, 0, gap)
        if np.count_nonzero(gap):
            counts.gaps["filled"] += int(np.count_nonzero(imputed))
            counts.gaps["restarted"] += int(np.count_nonzero(restart))
            counts.resets["gap"] += int(np.count_nonzero(restart))
            counts.imputed_steps += int(imputed.sum())

        # The newest reading of each series and its offset: where a slot occurs twice, the last one counts.
        store.last_ts[slots] = ts
        store.offsets[slots] = work.offsets[records]
        store.partitions[slots] = work.partitions[records]
        return arrange_in_waves(records, slots, ts, previous, imputed, restart, step_ms, first)

    def _set_aside(self, work: BatchWork, records: Int64, previous: Int64, outcome: int) -> None:
        """Late readings and duplicates take no step, and are dead letters only where the policy says so."""
        work.outcome[records] = outcome
        late = outcome == Outcome.LATE
        if self._policy.dead_letter_late if late else self._policy.dead_letter_duplicate:
            reason = DeadLetterReason.LATE if late else DeadLetterReason.DUPLICATE
            for record, newest in zip(records.tolist(), previous.tolist(), strict=True):
                got = format_time(int(work.readings.ts[record]))
                what = f"is before the newest of its series, {format_time(newest)}" if late else "was there already"
                work.rejected[record] = RecordRejected(reason, f"a reading of {got} {what}")

    def _run_model(self, work: BatchWork, steps: WaveSteps) -> None:
        """Run the waves through the model, one after the other; no two steps of one series are in the same wave.

        A reading's imputed steps and its own step succeed or fail together. Where the model's answer to any of them is
        not finite, that series alone returns to the initial state, the remaining steps of the reading are skipped, and
        the reading is a dead letter; its time still counts as seen.
        """
        store, model, warmup = self.store, self._model, self._model.spec.warmup_steps
        x_of_steps = work.readings.x[steps.records]  # [steps, features]
        any_imputed, any_restart, failures = np.count_nonzero(steps.imputed), np.count_nonzero(steps.restart), False
        if any_imputed:
            x_of_steps[steps.imputed] = np.nan
        for start, end in steps.calls(_MAX_CALL_ROWS):
            wave: slice | Int64 = slice(start, end)
            if failures:  # skip the remaining steps of readings that have failed
                wave = start + np.flatnonzero(work.outcome[steps.records[wave]] != Outcome.DEAD)
                if not len(wave):
                    continue
            records, slots = steps.records[wave], steps.slots[wave]
            rows: slice | Int64 = slots  # ascending
            first, last = int(slots[0]), int(slots[-1])
            if last - first + 1 == len(slots):  # adjacent, as where all sensors are read together
                rows = slice(first, last + 1)
                state = store.states[rows]  # [wave, state], a view: all of it is overwritten below
            else:
                state = store.states.take(slots, axis=0)  # [wave, state]
            done = store.steps[rows] + 1  # [wave]
            if any_restart:
                restart = steps.restart[wave]
                state[restart], done[restart] = store.initial_state, 1

            y, next_state, score = model.step(x_of_steps[wave], steps.ts[wave], state)
            work.counts.waves.append(len(slots))

            if not _all_finite(next_state, y):
                finite = _finite_rows(next_state) & _finite_rows(y)
                next_state, done = np.where(finite[:, np.newaxis], next_state, store.initial_state), done * finite
                for record in records[~finite].tolist():
                    failures = True
                    work.counts.resets["non_finite"] += 1
                    message = "the model's state or forecast was not finite after this reading; its series starts again"
                    work.reject(record, RecordRejected(DeadLetterReason.NON_FINITE_STATE, message))
            store.states[rows] = next_state
            store.steps[rows] = done
            if any_imputed:
                own = np.flatnonzero(~steps.imputed[wave])
                records, y, score, done = records[own], y[own], score[own], done[own]
            work.y[records], work.score[records], work.warm[records] = y, score, done >= warmup

    def _encode(self, work: BatchWork) -> BatchResult:
        """Columns to forecasts and dead letters, and the count of every record's outcome."""
        batch, counts = work.batch, work.counts
        rows: slice | Int64 = slice(None)
        answered, outcomes = batch, [len(batch)] + [0] * (Outcome.KINDS - 1)
        if np.count_nonzero(work.outcome) or np.count_nonzero(work.replayed):  # rare; otherwise nothing is copied
            rows = np.flatnonzero((work.outcome == Outcome.FORECAST) & ~work.replayed)
            answered = batch.take(rows.tolist())
            outcomes = np.bincount(work.outcome[~work.replayed], minlength=Outcome.KINDS).tolist()
        ts, score = work.readings.ts[rows], work.score[rows]
        positions = RecordPositions(batch.topic, work.partitions[rows], work.offsets[rows])
        forecasts = OutgoingBatch(
            topic=self._output_topic,
            partitions=[*answered.partitions],
            keys=[*answered.keys],
            values=[*self._encoder.encode(positions, ts, work.warm[rows], work.y[rows], score)],
            headers=forecast_headers(answered.headers),
            timestamps=[None] * len(answered),
        )
        missing = np.isnan(work.readings.x[rows])
        if missing.any():
            counts.missing = dict(zip(self._model.spec.features, missing.sum(axis=0).tolist(), strict=True))
        counts.forecasts, counts.duplicates = outcomes[Outcome.FORECAST], outcomes[Outcome.DUPLICATE]
        counts.late, counts.tombstones = outcomes[Outcome.LATE], outcomes[Outcome.TOMBSTONE]
        counts.replayed = int(work.replayed.sum())
        counts.readings = len(batch) - counts.tombstones - counts.replayed
        return BatchResult(forecasts, self._dead_letters(work), counts, score, ts, positions, self._model.spec,
                           work.partitions, work.timestamps)  # fmt: skip

    def _dead_letters(self, work: BatchWork) -> OutgoingBatch:
        """Each rejected record as it came, with the reason; counts them."""
        batch = work.batch
        dead_letters = OutgoingBatch(topic=self._dead_letter_topic)
        for r, rejection in sorted(work.rejected.items()):
            if work.replayed[r]:
                continue
            work.counts.dead_letters[rejection.reason] += 1
            dead_letters.append(
                batch.keys[r],
                batch.values[r],
                headers=dead_letter_headers(
                    rejection,
                    batch.headers[r],
                    topic=batch.topic,
                    partition=batch.partitions[r],
                    offset=batch.offsets[r],
                    group=self._policy.group,
                ),
                timestamp=batch.timestamps[r] if batch.timestamps[r] >= 0 else None,
            )
        return dead_letters


def _all_finite(*values: NDArray[np.float32]) -> bool:
    """False where a number is not finite, and perhaps where numbers are so large that their squares are not."""
    return math.isfinite(sum([float(np.vdot(each, each)) for each in values]))


def _finite_rows(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[batch, ...] -> [batch]"""
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
