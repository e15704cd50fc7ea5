"""The path of a reading: a batch of records in, forecasts and dead letters out. No I/O, no clock of its own.

`Pipeline.process` is the whole of it, in order: read, stretches, order, step, answer. All of it works on columns
with one row for each record of the batch, so that a row number is a record everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, Outgoing
from tidecast.service.model.session import Model
from tidecast.service.pipeline.batch import Counts, Result, Work
from tidecast.service.pipeline.dead_letters import (
    DeadLetterReason,
    Refused,
    check_key,
    dead_letter_headers,
    forecast_headers,
)
from tidecast.service.pipeline.decode import ReadingDecoder
from tidecast.service.pipeline.encode import ForecastEncoder, Sources
from tidecast.service.pipeline.expiry import Idle
from tidecast.service.pipeline.policy import Fate, Policy
from tidecast.service.pipeline.replay_filter import Replays
from tidecast.service.pipeline.segments import Stretch, stretches
from tidecast.service.pipeline.waves import Steps, in_waves, newest_before, stable_order, starts
from tidecast.service.state.store import SeriesTable
from tidecast.service.timestamps import format_time, missing_steps

__all__ = ["Counts", "Fate", "Pipeline", "Policy", "Result"]

Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_ROWS_AT_ONCE = 1_024  # of a wave, in one call of the model: what it needs on the way stays in the cache


class Pipeline:
    """Carries every series' state from batch to batch. For one thread."""

    def __init__(
        self,
        model: Model,
        policy: Policy,
        *,
        output_topic: str,
        dead_letter_topic: str,
        table: SeriesTable | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        spec = model.spec
        self.table = table if table is not None else SeriesTable(model.initial_state, policy.max_series, spec.state)
        self._model = model
        self._policy = policy
        self._output_topic, self._dead_letter_topic = output_topic, dead_letter_topic
        self._timer = timer
        self._decoder = ReadingDecoder(spec.features)
        self._encoder = ForecastEncoder(spec)
        forecast = (spec.horizon, len(spec.targets), len(spec.quantiles))
        self._forecast_shape = (len(spec.classes),) if spec.kind == "classifier" else forecast
        self._idle = Idle(self.table, policy.series_ttl_ms)
        self._replays = Replays(self.table)

    def process(self, batch: Batch) -> Result:
        """Answer a batch: each reading with a forecast, unless it is late, a duplicate, or a dead letter.

        Touches nothing but the table. The same records give the same forecasts however they are cut into batches.

        Raises:
            ModelError: the runtime failed in the middle of a step; the table must not be used any more.
        """
        started = self._timer()
        work = self._read(batch)
        read = self._timer()
        for stretch in self._stretches(work):  # nearly always one
            self._step(work, self._order(work, stretch))
        self._idle.forget(work)
        stepped = self._timer()
        result = self._answer(work)
        work.counts.stage_seconds = {
            "decode": read - started,
            "step": stepped - read,
            "encode": self._timer() - stepped,
        }
        return result

    def revoke(self, partitions: Collection[int]) -> None:
        """Forget the series of partitions that another worker has now."""
        self.table.forget_partitions(partitions)
        self._idle.revoke(partitions)
        self._replays.forget(partitions)

    def replay(self, partition: int, until: int) -> None:
        """The partition's states were restored; readings before `until` were answered by an earlier process."""
        self._replays.begin(partition, until)

    def take_over(self, partition: int, older: Pipeline) -> None:
        """The partition is this one's from the next record on, where `older` stands now; its series are here."""
        self._replays.answer_all(partition)
        self._idle.take_over(partition, older._idle)

    def _read(self, batch: Batch) -> Work:
        """Values and keys; what is no reading becomes a dead letter here."""
        n = len(batch)
        readings = self._decoder.decode(batch.values)
        timestamps = np.array(batch.timestamps, dtype=np.int64)
        arrived = np.where(timestamps > 0, timestamps, readings.ts)
        work = Work(
            batch=batch,
            readings=readings,
            partitions=np.array(batch.partitions, dtype=np.int32),
            offsets=np.array(batch.offsets, dtype=np.int64),
            timestamps=timestamps,
            slots=self.table.find_all(batch.keys),
            arrived=arrived,
            fate=np.zeros(n, dtype=np.int8),
            warm=np.zeros(n, dtype=np.bool_),
            y=np.empty((n, *self._forecast_shape), dtype=np.float32),
            score=np.empty((n, len(self._model.spec.diagnostics)), dtype=np.float32),
            counts=Counts(),
            letters={},
            silent=np.zeros(n, dtype=np.bool_),
        )
        if readings.tombstones:
            work.fate[readings.tombstones] = Fate.TOMBSTONE
        if self._policy.max_future_ms > 0:
            for record in (readings.ts - arrived > self._policy.max_future_ms).nonzero()[0].tolist():
                work.refuse(record, _from_the_future(int(readings.ts[record]), int(timestamps[record])))
        for record, refusal in readings.refused.items():
            work.refuse(record, refusal)
        for record in (work.slots < 0).nonzero()[0].tolist():  # a known key is a good key
            try:
                check_key(batch.keys[record])
            except Refused as refusal:
                work.refuse(record, refusal)
        self._replays.mark(work)
        return work

    def _stretches(self, work: Work) -> Iterator[Stretch]:
        """Find each reading's slot, and forget series where their time has come, between stretches."""
        return stretches(self.table, self._policy, work)

    def _order(self, work: Work, stretch: Stretch) -> Steps:
        """Event time: sort out late readings and duplicates, fill gaps, and lay the steps out in waves."""
        table, step_ms = self.table, self._model.spec.step_ms
        by_series = stable_order(stretch.slots)
        records, slots = stretch.records[by_series], stretch.slots[by_series]  # [readings]
        first = starts(slots)  # of each series
        # Late readings and duplicates too: they take no step, but when a series was last seen is part of what is kept.
        table.touched(slots[first], work.offsets[records[first]])
        ts = work.readings.ts[records]
        previous = newest_before(slots, ts, table.last_ts[slots], first)
        following = ts > previous
        if np.count_nonzero(following) < len(ts):
            self._set_aside(work, records[ts < previous], previous[ts < previous], Fate.LATE)
            self._set_aside(work, records[ts == previous], previous[ts == previous], Fate.DUPLICATE)
            records, slots, ts, previous = records[following], slots[following], ts[following], previous[following]
            first = starts(slots)
        gap = missing_steps(ts, previous, step_ms)
        restart = gap > self._policy.max_gap_steps
        silent = np.where(restart, 0, gap)
        self._note_gaps(work.counts, silent, restart)

        # The newest reading of each series, and where in the log it lies: of a slot that comes twice, the last counts.
        table.last_ts[slots] = ts
        table.offsets[slots] = work.offsets[records]
        table.partitions[slots] = work.partitions[records]
        return in_waves(records, slots, ts, previous, silent, restart, step_ms, first)

    def _set_aside(self, work: Work, records: Int64, previous: Int64, fate: int) -> None:
        """Late readings and duplicates: no step, and a dead letter only where it is asked for."""
        work.fate[records] = fate
        late = fate == Fate.LATE
        if self._policy.dead_letter_late if late else self._policy.dead_letter_duplicate:
            reason = DeadLetterReason.LATE if late else DeadLetterReason.DUPLICATE
            for record, newest in zip(records.tolist(), previous.tolist(), strict=True):
                got = format_time(int(work.readings.ts[record]))
                what = f"is before the newest of its series, {format_time(newest)}" if late else "was there already"
                work.letters[record] = Refused(reason, f"a reading of {got} {what}")

    @staticmethod
    def _note_gaps(counts: Counts, silent: Int64, restart: Mask) -> None:
        if not (np.count_nonzero(silent) or np.count_nonzero(restart)):
            return
        counts.gaps["filled"] += int(np.count_nonzero(silent))
        counts.gaps["restarted"] += int(np.count_nonzero(restart))
        counts.resets["gap"] += int(np.count_nonzero(restart))
        counts.silent_steps += int(silent.sum())

    def _step(self, work: Work, steps: Steps) -> None:
        """Every wave through the model, one call each; no two steps of one series are in the same wave.

        A reading's silent steps and its own succeed as one. Where the model answers any of them with something
        that is not finite, that series alone goes back to the initial state, the rest of the reading's steps are
        left out, and the reading is a dead letter; its time still counts as seen.
        """
        table, model, warmup = self.table, self._model, self._model.spec.warmup_steps
        x_of_steps = work.readings.x[steps.records]  # [steps, features]
        any_silent, any_restart, failures = np.count_nonzero(steps.silent), np.count_nonzero(steps.restart), False
        if any_silent:
            x_of_steps[steps.silent] = np.nan
        for start, end in steps.calls(_ROWS_AT_ONCE):
            wave: slice | Int64 = slice(start, end)
            if failures:  # of readings that failed before, the rest is left out
                wave = start + np.flatnonzero(work.fate[steps.records[wave]] != Fate.DEAD)
                if not len(wave):
                    continue
            records, slots = steps.records[wave], steps.slots[wave]
            rows: slice | Int64 = slots  # they ascend
            first, last = int(slots[0]), int(slots[-1])
            if last - first + 1 == len(slots):  # neighbours, as where all sensors are read together
                rows = slice(first, last + 1)
                state = table.states[rows]  # [wave, state], the table's own: all of it is written anew below
            else:
                state = table.states.take(slots, axis=0)  # [wave, state]
            done = table.steps[rows] + 1  # [wave]
            if any_restart:
                restart = steps.restart[wave]
                state[restart], done[restart] = table.initial_state, 1

            y, next_state, score = model.step(x_of_steps[wave], steps.ts[wave], state)
            work.counts.waves.append(len(slots))

            if not _all_finite(next_state, y):
                finite = _finite_rows(next_state) & _finite_rows(y)
                next_state, done = np.where(finite[:, np.newaxis], next_state, table.initial_state), done * finite
                for record in records[~finite].tolist():
                    failures = True
                    work.counts.resets["non_finite"] += 1
                    work.refuse(record, _non_finite())
            table.states[rows] = next_state
            table.steps[rows] = done
            if any_silent:
                spoken = np.flatnonzero(~steps.silent[wave])
                records, y, score, done = records[spoken], y[spoken], score[spoken], done[spoken]
            work.y[records], work.score[records], work.warm[records] = y, score, done >= warmup

    def _answer(self, work: Work) -> Result:
        """Forecast records and dead letters, and the counts of what became of every record."""
        batch, counts = work.batch, work.counts
        rows: slice | Int64 = slice(None)
        theirs, fates = batch, [len(batch)] + [0] * (Fate.KINDS - 1)
        if np.count_nonzero(work.fate) or np.count_nonzero(work.silent):  # nearly never; else nothing is copied
            rows = np.flatnonzero((work.fate == Fate.FORECAST) & ~work.silent)
            theirs = batch.take(rows.tolist())
            fates = np.bincount(work.fate[~work.silent], minlength=Fate.KINDS).tolist()
        ts, score = work.readings.ts[rows], work.score[rows]
        sources = Sources(batch.topic, work.partitions[rows], work.offsets[rows])
        forecasts = Outgoing(
            topic=self._output_topic,
            partitions=[*theirs.partitions],
            keys=[*theirs.keys],
            values=[*self._encoder.encode(sources, ts, work.warm[rows], work.y[rows], score)],
            headers=forecast_headers(theirs.headers),
            timestamps=[None] * len(theirs),
        )
        counts.forecasts, counts.duplicates, counts.late = fates[Fate.FORECAST], fates[Fate.DUPLICATE], fates[Fate.LATE]
        counts.tombstones = fates[Fate.TOMBSTONE]
        counts.replayed = int(work.silent.sum())
        counts.readings = len(batch) - counts.tombstones - counts.replayed
        return Result(forecasts, self._dead_letters(work), counts, score, ts, sources, self._model.spec,
                      work.partitions, work.timestamps)  # fmt: skip

    def _dead_letters(self, work: Work) -> Outgoing:
        """Each record that was refused, as it was, with the reason; counts them."""
        batch = work.batch
        dead_letters = Outgoing(topic=self._dead_letter_topic)
        for r, refusal in sorted(work.letters.items()):
            if work.silent[r]:
                continue
            work.counts.dead_letters[refusal.reason] += 1
            dead_letters.append(
                batch.keys[r],
                batch.values[r],
                headers=dead_letter_headers(
                    refusal,
                    batch.headers[r],
                    topic=batch.topic,
                    partition=batch.partitions[r],
                    offset=batch.offsets[r],
                    group=self._policy.group,
                ),
                timestamp=batch.timestamps[r] if batch.timestamps[r] >= 0 else None,
            )
        return dead_letters


def _from_the_future(ts: int, timestamp: int) -> Refused:
    message = f'"ts" is {format_time(ts)}, too far ahead of the time of its record, {format_time(timestamp)}'
    return Refused(DeadLetterReason.TIME_OUT_OF_RANGE, message)


def _non_finite() -> Refused:
    return Refused(
        DeadLetterReason.NON_FINITE_STATE,
        "the model's state or forecast was not finite after this reading; its series starts again",
    )


def _all_finite(*values: NDArray[np.float32]) -> bool:
    """False where something is not finite, and perhaps where numbers are so large that their squares are not."""
    return math.isfinite(sum([float(np.vdot(each, each)) for each in values]))


def _finite_rows(values: NDArray[np.float32]) -> Mask:
    """[batch, ...] -> [batch]"""
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
