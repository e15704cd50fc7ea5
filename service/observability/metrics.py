"""The worker's metrics for Prometheus. Their names are a contract: later versions add names, but never rename.

Metrics are updated once per batch, not once per reading. No label holds the name of a series. All values of a label are
known when the worker starts and begin at zero, so that a rate exists before the first event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tidecast import __version__
from tidecast.service.model.spec import ModelSpec
from tidecast.service.observability.histogram import BulkHistogram
from tidecast.service.observability.model_score_metrics import ModelScoreMetrics
from tidecast.service.observability.partition_gauges import PartitionGauges
from tidecast.service.observability.score_metrics import ScoreMetrics
from tidecast.service.pipeline.batch import BatchCounts, BatchResult, MemberScores

STAGES = ("poll", "decode", "step", "encode", "emit", "commit")
GAP_ACTIONS = ("filled", "restarted")
RESET_REASONS = ("non_finite", "gap", "clock", "tombstone", "evicted", "expired", "damaged_state")
PART_OUTCOMES = ("taken", "repeated", "late", "dropped")
OUTCOMES = ("committed", "failed")
SWAP_OUTCOMES = ("done", "refused")
PROMOTED_BY = ("auto", "command", "rollback")
IGNORED_DECISIONS = ("unreadable", "unknown_model")
# Those that a worker without a model, which routes readings, does not have; and the one that only such a worker has.
_OF_MODELS = {
    *("forecasts", "duplicate_readings", "late_readings", "clock_recoveries", "silent_steps"),
    *("gaps", "missing_values", "resets", "changelog_records", "batch_size", "event_to_forecast_seconds"),
    *("max_series", "restore_seconds", "model_swaps", "shadow_resets", "model_info", "parts", "incomplete_readings"),
    *("promotions", "ignored_decisions", "promotion_evidence"),
}
_OF_ROUTING = {"routed_readings"}

_STAGE_BUCKETS = tuple(m * 10.0**e for e in range(-6, 2) for m in (1, 2.5, 5) if 2.4e-5 < m * 10.0**e < 11)
# Batches are counted together once they have this many records, or there are this many: counting a small batch costs as
# much as counting a large one.
_MAX_PENDING_RECORDS, _MAX_PENDING_BATCHES = 8_192, 256
_BATCH_BUCKETS = tuple(float(2**e) for e in range(13))
_LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(300.0, 900.0, 3_600.0, 21_600.0, 86_400.0),
)


class EmittedBatch(NamedTuple):
    """The parts of one batch's result that are counted once it is committed, together with other batches."""

    counts: BatchCounts
    scores: NDArray[np.float32]  # [forecasts, diagnostics]
    spec: ModelSpec | None
    event_times: NDArray[np.int64]  # [forecasts] ms
    wall: float  # s, when the forecasts were made
    partitions: NDArray[np.int32]  # [records]
    timestamps: NDArray[np.int64]  # [records] ms
    members: Sequence[MemberScores]  # none where there are no shadows


class _BeforeScrape(Collector):
    """Runs a function at the start of each scrape. Must be registered first."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def collect(self) -> Iterable[Metric]:
        """Run it; there are no metrics."""
        self._do()
        return ()


class Metrics:
    """All metrics of one worker, over a registry of its own.

    Args:
        spec: of the model; its diagnostics determine the scores. None = readings are routed.
        dead_letter_reasons: all of them, so that each begins at zero.
        wall: seconds since the epoch.
    """

    def __init__(
        self, spec: ModelSpec | None, dead_letter_reasons: Iterable[str], wall: Callable[[], float] = time.time
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # otherwise each counter has a second, useless series
        self.registry = CollectorRegistry()
        self._wall, self._left_out = wall, _OF_MODELS if spec is None else _OF_ROUTING
        self._lock = threading.Lock()
        self._pending: list[EmittedBatch] = []
        self._damaged = 0  # states set aside
        self._records = 0  # in the pending batches
        self.registry.register(_BeforeScrape(self._count_pending))
        self._batch_counters = {  # by the field of BatchCounts
            "readings": self._counter("readings", "records read from the input topic, except tombstones"),
            "forecasts": self._counter("forecasts", "forecasts committed"),
            "routed": self._counter(
                "routed_readings", "readings that `tidecast route` has written to the input topic of `tidecast serve`"
            ),
            "skipped": self._counter(
                "input_skipped", "records that the [input] table leaves out, or that hold no reading"
            ),
            "unused_values": self._counter(
                "input_unused_values", "values of the long form under names that are no feature; the log names them"
            ),
            "duplicates": self._counter(
                "duplicate_readings", "readings with the same time as the newest of their series; no forecast"
            ),
            "late": self._counter("late_readings", "readings older than the newest of their series; no forecast"),
            "replayed": self._counter(
                "replayed_readings",
                "readings read again to update restored states; they were answered before",
            ),
            "clock_recoveries": self._counter(
                "clock_recoveries", "series that started again because their clock was ahead of their true readings"
            ),
            "incomplete": self._counter(
                "incomplete_readings", "joined readings answered without all features of the model"
            ),
            "imputed_steps": self._counter("silent_steps", "steps without a reading, made to fill gaps"),
        }
        self._labelled_batch_counters = {
            "dead_letters": self._counter(
                "dead_letters", "records sent to the dead-letter topic", "reason", dead_letter_reasons
            ),
            "parts": self._counter(
                "parts",
                "parts of readings that come in several records: taken, repeated (some value was there already), late "
                "(their reading was answered), dropped (while they waited, with their series or by another model)",
                "outcome",
                PART_OUTCOMES,
            ),
            "gaps": self._counter(
                "gaps",
                "gaps in a series: filled with steps, or followed by a restart",
                "action",
                GAP_ACTIONS,
            ),
            "missing": self._counter(
                "missing_values",
                "values that answered readings lacked; the model uses its own forecast for them",
                "feature",
                () if spec is None else spec.features,
            ),
            "resets": self._counter("resets", "series whose state was dropped or reset", "reason", RESET_REASONS),
            "shadow_resets": self._counter(
                "shadow_resets", "states of a shadow that were reset: it, or a forecast, was not finite", "model"
            ),
        }
        self.transactions = self._counter("transactions", "commits of forecasts and offsets", "outcome", OUTCOMES)
        self.start_overs = self._counter(
            "start_overs", "times that all states were dropped and restored because a transaction failed"
        )
        self.changelog_records = self._counter(
            "changelog_records", "states, and tombstones of removed series, written to the changelog"
        )
        self.unread_batches = self._counter(
            "unread_batches",
            "compressed batches set aside: they cannot be unpacked, or only to a huge size; counted at each read",
        )
        self.input_waits = self._counter(
            "input_waits", "times that readings were put back because a schema registry did not answer"
        )
        self.unowned_partitions = self._counter(
            "unowned_partitions",
            "partitions that the group had left without an owner when this worker made it assign them again",
        )
        self.rebalances = self._counter("rebalances", "times that the group assigned partitions to this worker")
        self.stalls = self._counter("stalls", "times that the watchdog found the loop hanging")

        self.batch_size = self._histogram("batch_size", "readings in one call of the model", _BATCH_BUCKETS)
        self.stage_seconds = self._histogram(
            "stage_seconds", "time that each stage of the loop takes, per batch", _STAGE_BUCKETS, "stage", STAGES
        )
        self.event_to_forecast = self._histogram(
            "event_to_forecast_seconds",
            "from a reading's event time until its forecast is handed to Kafka",
            _LATENCY_BUCKETS,
        )
        self.scores: ScoreMetrics | None = None
        if spec is not None:
            self.scores = ScoreMetrics(spec)
            self.registry.register(self.scores)
        self.model_scores = ModelScoreMetrics()
        if spec is not None:
            self.registry.register(self.model_scores)
        self.partitions = PartitionGauges(wall, series=spec is not None)
        self.registry.register(self.partitions)

        self.last_poll = self._gauge("last_poll_timestamp_seconds", "when the loop last polled Kafka for readings")
        self.kafka_answered = self._gauge(
            "kafka_answer_timestamp_seconds", "when Kafka last answered; it is asked every 10 s while idle; 0 = not yet"
        )
        self.last_commit = self._gauge("last_commit_timestamp_seconds", "when the last commit succeeded; 0 = not yet")
        self.max_series = self._gauge(
            "max_series",
            "the most series that this worker keeps in memory",
        )
        self.restoring = self._gauge("restoring_partitions", "partitions not read yet: their states are being restored")
        self.restore_remaining = self._gauge("restore_remaining_records", "changelog records still to read")
        self.restore_seconds = self._gauge("restore_seconds", "duration of the last restore of states")
        self.model_swaps = self._counter(
            "model_swaps", "newer models that took over or were refused", "outcome", SWAP_OUTCOMES
        )
        self.promotions = self._counter(
            "promotions",
            "decisions of the decisions topic that took effect on this worker: another model answers",
            "by",
            PROMOTED_BY,
        )
        self.ignored_decisions = self._counter(
            "ignored_decisions",
            "records of the decisions topic that this worker cannot follow: they are no decision, or name a model that "
            "it does not run",
            "reason",
            IGNORED_DECISIONS,
        )
        self.promotion_evidence = self._gauge(
            "promotion_evidence",
            "with --promote auto: the e-value that a shadow is better than the champion; 100 for each shadow promotes",
            "model",
        )
        self._model = self._gauge(
            "model_info",
            "each model that runs, its role is champion (it answers) or shadow; always 1",
            *("name", "hash", "kind", "contract", "role"),
        )
        self._roles: Sequence[tuple[ModelSpec, str]] = ()
        if spec is not None:
            self.serve([(spec, "champion")])
        self._gauge("build_info", "the version of tidecast; always 1", "version").labels(__version__).set(1)
        ProcessCollector(registry=self.registry)

    def _registry_of(self, name: str) -> CollectorRegistry | None:
        """None where this kind of worker does not show the metric."""
        return None if name in self._left_out else self.registry

    def _counter(self, name: str, documentation: str, label: str = "", values: Iterable[str] = ()) -> Counter:
        counter = Counter(f"tidecast_{name}", documentation, [label] if label else [], registry=self._registry_of(name))
        for value in values:
            counter.labels(value)
        return counter

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"tidecast_{name}", documentation, labels, registry=self._registry_of(name))

    def _histogram(
        self, name: str, documentation: str, buckets: Sequence[float], label: str = "", values: Sequence[str] = ()
    ) -> BulkHistogram:
        histogram = BulkHistogram(f"tidecast_{name}", documentation, buckets, label, values)
        if (registry := self._registry_of(name)) is not None:
            registry.register(histogram)
        return histogram

    def serve(self, roles: Sequence[tuple[ModelSpec, str]]) -> None:
        """Show these models, each with its role."""
        if roles == self._roles:
            return
        self._roles = roles
        self._model.clear()
        for spec, role in roles:
            self._model.labels(spec.name, spec.hash[:12], spec.kind, str(spec.contract), role).set(1)
            if len(roles) > 1:
                self._labelled_batch_counters["shadow_resets"].labels(spec.id)

    def emitted(self, result: BatchResult) -> EmittedBatch:
        """What to count of a batch. Call it as its forecasts are handed to Kafka."""
        return EmittedBatch(
            result.counts,
            result.scores,
            result.spec,
            result.event_times,
            self._wall(),
            result.partitions,
            result.timestamps,
            result.members,
        )

    def count(self, batches: Sequence[EmittedBatch]) -> None:
        """Count batches that are committed."""
        with self._lock:
            self._pending += batches
            self._records += sum(len(each.partitions) for each in batches)
        if self._records >= _MAX_PENDING_RECORDS or len(self._pending) >= _MAX_PENDING_BATCHES:
            self._count_pending()

    def _add(self, counts: Sequence[BatchCounts]) -> None:
        """Add the sums over batches."""
        for name, counter in self._batch_counters.items():
            counter.inc(sum(getattr(each, name) for each in counts))
        for name, counter in self._labelled_batch_counters.items():
            for each in counts:
                for label, n in getattr(each, name).items():
                    if n:  # rare, and looking up a label is expensive
                        counter.labels(label).inc(n)
        for stage in counts[0].stage_seconds:
            self.stage_seconds.observe([each.stage_seconds[stage] for each in counts], stage)
        self.batch_size.observe([size for each in counts for size in each.waves])

    def _count_pending(self) -> None:
        """Count the pending batches. Called by the loop, and by scrapes in other threads."""
        with self._lock:
            waiting, self._pending, self._records = self._pending, [], 0
            if not waiting:
                return
            self._add([each.counts for each in waiting])
            for _, group in groupby(waiting, key=lambda each: id(each.spec)):
                of_one = list(group)
                if self.scores is not None and (spec := of_one[0].spec) is not None:
                    self.scores.add(np.concatenate([each.scores for each in of_one]), spec)
            self.model_scores.add([member for each in waiting for member in each.members])
            partitions, timestamps, times = (
                np.concatenate(columns)
                for columns in zip(*((w.partitions, w.timestamps, w.event_times) for w in waiting), strict=True)
            )
            self.partitions.seen(partitions, timestamps)
            now = np.repeat([each.wall for each in waiting], [len(each.event_times) for each in waiting])
            self.event_to_forecast.observe(np.maximum(now - times / 1_000, 0.0))

    def note_commit(self) -> None:
        """Note that a commit succeeded."""
        self.last_commit.set(self._wall())

    def note_damaged_states(self, total: int) -> None:
        """Note how many states were set aside in all restores."""
        self._labelled_batch_counters["resets"].labels("damaged_state").inc(total - self._damaged)
        self._damaged = total

    def note_answer(self) -> None:
        """Note that Kafka answered."""
        self.kafka_answered.set(self._wall())
