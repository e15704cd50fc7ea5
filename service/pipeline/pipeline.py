"""The path of a batch: records in, forecasts and dead letters out. No I/O, but to fetch schemas before.

A batch has three forms. It arrives as a `Batch`, whose columns are Python lists, as the Kafka clients give them. It is
worked on as a `BatchWork`, whose columns are numpy arrays. It leaves as two `OutgoingBatch`, lists again, as the Kafka
clients take them. A row of any column is one record of the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.input.config import InputConfig
from tidecast.service.input.mapping import InputMapper, MappedBatch
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected, check_key
from tidecast.service.model.group import ModelGroup
from tidecast.service.model.numbers import all_finite, finite_rows
from tidecast.service.model.session import Model
from tidecast.service.pipeline.answering import Answering
from tidecast.service.pipeline.batch import BatchCounts, BatchResult, BatchWork, together
from tidecast.service.pipeline.clocks import ClockRecovery
from tidecast.service.pipeline.dead_letters import dead_letters_of, forecast_headers
from tidecast.service.pipeline.encode import RecordPositions
from tidecast.service.pipeline.join import PartJoin
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
    """Turns batches into forecasts and keeps the state of every series between them. For one thread.

    `model`: what answers; of a group, the member that was asked for, unless `process` says otherwise.
    """

    def __init__(
        self,
        model: Model | ModelGroup,
        policy: Policy,
        *,
        output_topic: str,
        dead_letter_topic: str,
        input_config: InputConfig | None = None,
        store: SeriesStore | None = None,
        timer: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._group = group = model if isinstance(model, ModelGroup) else ModelGroup([model])
        slices = group.specs[0].state if group.alone else ()
        self.store = store if store is not None else SeriesStore(group.initial_state, policy.max_series, slices)
        self._policy, self._timer, self._wall = policy, timer, wall
        self._output_topic, self._dead_letter_topic = output_topic, dead_letter_topic
        self._champions = [Answering(group, nth) for nth in range(len(group.members))]
        self._answering = self._champions[group.asked]
        self._mapper = None if input_config is None else InputMapper(input_config, group.features)
        self._rekeys = input_config is not None and input_config.rekeys
        self._split = partial(split_into_segments, self.store, policy.series_ttl_ms)
        self._sweeper = TtlSweeper(self.store, policy.series_ttl_ms)
        self._replay_filter = ReplayFilter(self.store)
        self._clocks = ClockRecovery(self.store, policy, group.step_ms)
        join = None if input_config is None else input_config.join_of(len(group.features))
        features = group.features
        self._join = PartJoin(self.store, policy, join, features, self._clocks, self._rekeys) if join else None

    def prepare(self, batch: Batch) -> None:
        """Fetch the schemas that these records need, where they are not here yet. To be called before `process`.

        Raises:
            InputUnavailable: the registry does not answer; a later try may succeed.
            TidecastError: a package is not installed that a schema needs.
        """
        if self._mapper is not None:
            self._mapper.prepare(batch)

    def process(self, batch: Batch, champion: int | None = None) -> BatchResult:
        """Answer a batch: each reading with a forecast, unless it is late, a duplicate, or a dead letter.

        Changes nothing but the store. The same records give the same forecasts however they are cut into batches.
        `champion`: the member of the group that answers; None = the one that was asked for.

        Raises:
            ModelError: the runtime failed during a step; the store is inconsistent and must not be used any more.
        """
        started = self._timer()
        self._answering = self._champions[self._group.asked if champion is None else champion]
        records = work = self._decode(batch)
        decoded = self._timer()
        if self._join is None:
            for segment in self._split(work):  # nearly always one
                self._run_model(work, self._plan_steps(work, segment))
        else:
            pieces = []
            for piece, segment in self._join.pieces(records):  # nearly always one
                self._run_model(piece, self._plan_steps(piece, segment))
                pieces.append(piece)
            work = together(records, pieces)
        self._sweeper.sweep(records)
        work.counts.parts["dropped"] += self.store.dropped_parts
        self.store.dropped_parts = 0
        stepped = self._timer()
        result = self._encode(work)
        result.partitions, result.timestamps = records.partitions, records.timestamps
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

    def adopt(self, partition: int) -> int:
        """The partition's series came from elsewhere. Forgets waiting parts that cannot be joined here; how many."""
        before = self.store.dropped_parts
        if self._join is None:
            self.store.drop_waiting(partition)
        else:
            self._join.adopt(partition)
        return self.store.dropped_parts - before

    def take_over(self, partition: int, older: Pipeline) -> None:
        """Answer the partition from the next record on; the series and their states are in this store already."""
        self._replay_filter.end(partition)
        self._sweeper.take_over(partition, older._sweeper)

    def _decode(self, batch: Batch) -> BatchWork:
        """Keys and values to columns. A record that is not a valid reading becomes a dead letter."""
        if self._mapper is None:
            readings = self._answering.decode(batch.values)
            mapped = MappedBatch(batch, readings, (*self._group.features,), batch)
        else:
            mapped = self._mapper.map(batch)
            batch, readings = mapped.batch, mapped.readings
        n = len(batch)
        timestamps = np.array(batch.timestamps, dtype=np.int64)
        dated = timestamps > 0
        arrived = arrived_at = np.where(dated, timestamps, readings.ts)
        if not dated.all():
            arrived_at = np.where(dated, timestamps, round(self._wall() * 1_000))
        lead = readings.ts - arrived_at
        work = BatchWork(
            mapped=mapped,
            readings=readings,
            partitions=np.array(batch.partitions, dtype=np.int32),
            offsets=np.array(batch.offsets, dtype=np.int64),
            timestamps=timestamps,
            slots=self.store.find_all(batch.keys),
            arrived=arrived,
            arrived_at=arrived_at,
            furthest_ahead=int(lead.max(initial=0)),
            outcome=np.zeros(n, dtype=np.int8),
            warm=np.zeros(n, dtype=np.bool_),
            y=np.empty((n, *self._answering.forecast_shape), dtype=np.float32),
            score=np.empty((n, self._group.score_width), dtype=np.float32),
            replayed=np.zeros(n, dtype=np.bool_),
        )
        if readings.tombstones:
            work.outcome[readings.tombstones] = Outcome.TOMBSTONE
        if 0 < self._policy.max_future_ms < work.furthest_ahead:
            for record in (lead > self._policy.max_future_ms).nonzero()[0].tolist():
                ts, now = format_time(int(readings.ts[record])), format_time(int(arrived_at[record]))
                clock = (
                    "the time of its record" if dated[record] else "the worker's clock (the record has no timestamp)"
                )
                message = f'"ts" is {ts}, too far ahead of {clock}, {now}'
                work.reject(record, RecordRejected(DeadLetterReason.TIME_OUT_OF_RANGE, message))
        for record, rejection in readings.rejected.items():
            work.reject(record, rejection)
        # The keys of known series are valid, and those that a mapper gives.
        for record in (work.slots < 0).nonzero()[0].tolist() if self._mapper is None else ():
            try:
                check_key(batch.keys[record])
            except RecordRejected as rejection:
                work.reject(record, rejection)
        work.counts.count_input(mapped, self._replay_filter.new_records(mapped.source))
        self._replay_filter.mark(work)
        return work

    def _plan_steps(self, work: BatchWork, segment: Segment) -> WaveSteps:
        """Put readings in the order of event time: find late ones, duplicates and gaps; arrange the rest in waves."""
        store, counts, step_ms = self.store, work.counts, self._group.step_ms
        by_series = stable_order(segment.slots)
        records, slots = segment.records[by_series], segment.slots[by_series]  # [readings]
        if self._rekeys and (moved := store.partitions[slots] != work.partitions[records]).any():
            self._reject_moved(work, records[moved], slots[moved])
            records, slots = records[~moved], slots[~moved]
        first = first_of_series(slots)
        # Late readings and duplicates count too: the time at which a series was last seen is part of its saved state.
        store.mark_dirty(slots[first], work.offsets[records[first]])
        ts = work.readings.ts[records]
        previous = newest_before(slots, ts, store.last_ts[slots], first)
        again = self._clocks.find(work, records, slots, ts, previous)
        following = ts > previous
        if np.count_nonzero(following) < len(ts):
            self._set_aside(work, records[ts < previous], previous[ts < previous], Outcome.LATE)
            self._set_aside(work, records[ts == previous], previous[ts == previous], Outcome.DUPLICATE)
            records, slots, ts, previous = records[following], slots[following], ts[following], previous[following]
            first = first_of_series(slots)
            again = None if again is None else again[following]
        gap = missing_steps(ts, previous, step_ms)
        restart = gap > self._policy.max_gap_steps
        imputed = np.where(restart, 0, gap)
        if np.count_nonzero(gap):
            counts.gaps["filled"] += int(np.count_nonzero(imputed))
            counts.gaps["restarted"] += int(np.count_nonzero(restart))
            counts.resets["gap"] += int(np.count_nonzero(restart))
            counts.imputed_steps += int(imputed.sum())
        if again is not None:
            restart |= again
            counts.resets["clock"] += int(np.count_nonzero(again))
            new = records[again & ~work.replayed[records]].tolist()
            counts.clock_recoveries += len(new)
            counts.recovered += [key for key in map(work.batch.keys.__getitem__, new) if key is not None]

        # The newest reading of each series and its offset: where a slot occurs twice, the last one counts.
        store.last_ts[slots] = ts
        store.offsets[slots] = work.offsets[records]
        store.partitions[slots] = work.partitions[records]
        return arrange_in_waves(records, slots, ts, previous, imputed, restart, step_ms, first)

    def _reject_moved(self, work: BatchWork, records: Int64, slots: Int64) -> None:
        """Readings of series whose states belong to another partition: two workers would have two states for them."""
        for record, theirs in zip(records.tolist(), self.store.partitions[slots].tolist(), strict=True):
            work.reject(record, work.moved(record, theirs))

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
        store, model = self.store, self._answering
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

            if not all_finite(next_state, y):
                finite = finite_rows(next_state) & finite_rows(y)
                next_state, done = model.reset(finite, next_state), done * finite
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
            work.y[records], work.score[records], work.warm[records] = y, score, model.warm(done, score)

    def _encode(self, work: BatchWork) -> BatchResult:
        """Columns to forecasts and dead letters, and the count of every record's outcome."""
        batch, counts = work.batch, work.counts
        rows: slice | Int64 = slice(None)
        answered, outcomes = batch, [len(batch)] + [0] * (Outcome.KINDS - 1)
        if np.count_nonzero(work.outcome) or np.count_nonzero(work.replayed):  # rare; otherwise nothing is copied
            rows = np.flatnonzero((work.outcome == Outcome.FORECAST) & ~work.replayed)
            answered = batch.take(rows.tolist())
            outcomes = np.bincount(work.outcome[~work.replayed], minlength=Outcome.KINDS).tolist()
        ts, score, champion = work.readings.ts[rows], work.score[rows], self._answering
        own = champion.scores(score)
        positions = RecordPositions(batch.topic, work.partitions[rows], work.offsets[rows])
        forecasts = OutgoingBatch(
            topic=self._output_topic,
            partitions=[*answered.partitions],
            keys=[*answered.keys],
            values=[*champion.encoder.encode(positions, ts, work.warm[rows], work.y[rows], own)],
            headers=forecast_headers(answered.headers),
            timestamps=[None] * len(answered),
        )
        missing = np.isnan(work.readings.x[rows])
        if missing.any():
            missed = missing.sum(axis=0)[slice(None) if champion.columns is None else champion.columns].tolist()
            counts.missing = dict(zip(champion.spec.features, missed, strict=True))
        counts.forecasts, counts.duplicates = outcomes[Outcome.FORECAST], outcomes[Outcome.DUPLICATE]
        counts.late, counts.tombstones = outcomes[Outcome.LATE], outcomes[Outcome.TOMBSTONE]
        counts.replayed = int(work.replayed.sum())
        counts.readings = len(batch) - counts.tombstones - counts.replayed
        dead_letters = dead_letters_of(work, self._dead_letter_topic, self._policy.group)
        counts.shadow_resets = self._group.take_resets()
        return BatchResult(forecasts, dead_letters, counts, own, ts, positions, champion.spec,
                           work.partitions, work.timestamps, champion.members(score))  # fmt: skip
