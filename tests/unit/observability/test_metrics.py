"""Metrics: the names are a contract, values begin at zero, no label holds a series' name."""

import threading
import weakref

import msgspec
import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.model.spec import Diagnostic, ModelSpec, SelfTest, TrainingData
from tidecast.service.observability.histogram import BulkHistogram
from tidecast.service.observability.metrics import Metrics
from tidecast.service.observability.score_metrics import ScoreMetrics
from tidecast.service.pipeline.batch import BatchCounts, BatchResult
from tidecast.service.pipeline.encode import RecordPositions

DIAGNOSTICS = [
    Diagnostic("ae_t_1", "absolute_error", "t", 1),
    Diagnostic("ae_t_24", "absolute_error", "t", 24),
    Diagnostic("ne_t_1", "naive_error", "t", 1),
    Diagnostic("in_t_1_90", "inside", "t", 1, 0.9),
    Diagnostic("surprise", "surprise", "t", 1),
    Diagnostic("clipped_t", "clipped", "t", 0),
    Diagnostic("alarm_t", "alarm", "t", 0),
]
SPEC = ModelSpec(
    name="tiny",
    hash="a" * 64,
    features=["t"],
    targets=["t"],
    horizon=24,
    step_ms=1000,
    quantiles=[0.5],
    state_size=1,
    state=[],
    initial_state=[0.0],
    warmup_steps=1,
    diagnostics=DIAGNOSTICS,
    training_data=TrainingData("", 0, 0, 0),
    metrics={},
    self_test=SelfTest([], [], []),
)

# Later versions may add; a name or label that goes or changes breaks dashboards and alerts of our users.
NAMES = {
    "tidecast_readings_total": (),
    "tidecast_forecasts_total": (),
    "tidecast_dead_letters_total": ("reason",),
    "tidecast_duplicate_readings_total": (),
    "tidecast_late_readings_total": (),
    "tidecast_gaps_total": ("action",),
    "tidecast_silent_steps_total": (),
    "tidecast_incomplete_readings_total": (),
    "tidecast_missing_values_total": ("feature",),
    "tidecast_parts_total": ("outcome",),
    "tidecast_resets_total": ("reason",),
    "tidecast_transactions_total": ("outcome",),
    "tidecast_rebalances_total": (),
    "tidecast_batch_size_bucket": ("le",),
    "tidecast_batch_size_count": (),
    "tidecast_batch_size_sum": (),
    "tidecast_stage_seconds_bucket": ("le", "stage"),
    "tidecast_stage_seconds_count": ("stage",),
    "tidecast_stage_seconds_sum": ("stage",),
    "tidecast_event_to_forecast_seconds_bucket": ("le",),
    "tidecast_event_to_forecast_seconds_count": (),
    "tidecast_event_to_forecast_seconds_sum": (),
    "tidecast_absolute_error_sum": ("horizon", "target"),
    "tidecast_absolute_error_count": ("horizon", "target"),
    "tidecast_naive_error_sum": ("horizon", "target"),
    "tidecast_naive_error_count": ("horizon", "target"),
    "tidecast_interval_coverage_sum": ("horizon", "level", "target"),
    "tidecast_interval_coverage_count": ("horizon", "level", "target"),
    "tidecast_clipped_values_total": ("target",),
    "tidecast_alarms_total": ("target",),
    "tidecast_lag_records": ("partition", "topic"),
    "tidecast_lag_seconds": ("partition", "topic"),
    "tidecast_interval_level": ("horizon", "level", "target"),
    "tidecast_series": ("partition",),
    "tidecast_max_series": (),
    "tidecast_unwritten_series": ("partition",),
    "tidecast_changelog_records_total": (),
    "tidecast_start_overs_total": (),
    "tidecast_clock_recoveries_total": (),
    "tidecast_unowned_partitions_total": (),
    "tidecast_unread_batches_total": (),
    "tidecast_input_waits_total": (),
    "tidecast_stalls_total": (),
    "tidecast_replayed_readings_total": (),
    "tidecast_input_skipped_total": (),
    "tidecast_input_unused_values_total": (),
    "tidecast_kafka_answer_timestamp_seconds": (),
    "tidecast_last_commit_timestamp_seconds": (),
    "tidecast_restoring_partitions": (),
    "tidecast_last_poll_timestamp_seconds": (),
    "tidecast_restore_remaining_records": (),
    "tidecast_restore_seconds": (),
    "tidecast_model_swaps_total": ("outcome",),
    "tidecast_promotions_total": ("by",),
    "tidecast_ignored_decisions_total": ("reason",),
    "tidecast_promotion_evidence": ("model",),
    "tidecast_model_info": ("contract", "hash", "kind", "name", "role"),
    "tidecast_build_info": ("version",),
}


@pytest.fixture
def metrics():
    return Metrics(SPEC, ["late", "not_json"], wall=lambda: 1_000.0)


def samples(metrics: Metrics) -> dict[str, float]:
    """`name{label=value,...}` (labels sorted) -> value, of our own metrics."""
    return {
        sample.name
        + ("{" + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())) + "}" if sample.labels else ""): (
            sample.value
        )
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith("tidecast_")
    }


def test_the_names_and_labels_are_those_that_dashboards_were_built_on(metrics):
    metrics.partitions.update("readings", {0: 0}, {0: 0}, {0: 0})
    metrics.promotion_evidence.labels("tiny@aaaaaaaaaaaa").set(0.0)
    found = {
        s.name: tuple(sorted(s.labels))
        for f in metrics.registry.collect()
        for s in f.samples
        if s.name.startswith("tidecast_")
    }
    assert found == NAMES


def test_every_label_value_is_there_at_zero_before_anything_happens(metrics):
    found = samples(metrics)
    assert found["tidecast_dead_letters_total{reason=not_json}"] == 0
    assert found["tidecast_gaps_total{action=restarted}"] == 0
    assert found["tidecast_resets_total{reason=non_finite}"] == 0
    assert found["tidecast_transactions_total{outcome=failed}"] == 0
    assert found["tidecast_stage_seconds_count{stage=commit}"] == 0
    assert found["tidecast_absolute_error_count{horizon=24,target=t}"] == 0
    assert found["tidecast_interval_coverage_count{horizon=1,level=0.9,target=t}"] == 0
    assert found["tidecast_interval_level{horizon=1,level=0.9,target=t}"] == 0.9
    assert found["tidecast_stalls_total"] == found["tidecast_start_overs_total"] == 0


def test_stages_are_timed_from_25_microseconds_up(metrics):
    bounds = [
        s.labels["le"]
        for f in metrics.registry.collect()
        for s in f.samples
        if s.name == "tidecast_stage_seconds_bucket"
    ]
    assert bounds[0] == "2.5e-05" and bounds[-1] == "+Inf"


def test_a_histogram_puts_a_value_on_the_bound_into_that_bounds_bucket():
    histogram = BulkHistogram("h", "help", [1.0, 2.0])
    histogram.observe([0.5, 1.0, 1.5, 2.0, 99.0])
    histogram.observe(np.array([], dtype=float))
    (family,) = histogram.collect()
    assert {s.labels.get("le", s.name): s.value for s in family.samples} == {
        "1": 2,
        "2": 4,
        "+Inf": 5,
        "h_count": 5,
        "h_sum": 104.0,
    }


def test_scores_are_summed_where_there_was_something_to_score(metrics):
    nan = float("nan")
    rows = np.array([[1.0, nan, 4.0, 1.0, 9.0, 1.0, 1.0], [2.0, nan, 2.0, 0.0, 9.0, nan, 1.0]], dtype=np.float32)
    metrics.scores.add(rows, SPEC)
    metrics.scores.add(np.full((1, 7), nan, dtype=np.float32), SPEC)
    metrics.scores.add(np.empty((0, 7), dtype=np.float32), SPEC)
    found = samples(metrics)
    assert found["tidecast_absolute_error_sum{horizon=1,target=t}"] == 3.0
    assert found["tidecast_absolute_error_count{horizon=1,target=t}"] == 2
    assert found["tidecast_absolute_error_count{horizon=24,target=t}"] == 0
    assert found["tidecast_naive_error_sum{horizon=1,target=t}"] == 6.0
    assert found["tidecast_interval_coverage_sum{horizon=1,level=0.9,target=t}"] == 1.0
    assert found["tidecast_interval_coverage_count{horizon=1,level=0.9,target=t}"] == 2
    assert found["tidecast_clipped_values_total{target=t}"] == 1
    assert found["tidecast_alarms_total{target=t}"] == 2


def test_after_a_swap_the_scores_of_both_models_are_in_one_sum(metrics):
    newer = msgspec.structs.replace(SPEC, diagnostics=[msgspec.structs.replace(SPEC.diagnostics[0], name="other")])
    metrics.scores.add(np.array([[1.0, 0, 0, 0, 0, 0, 0]], dtype=np.float32), SPEC)
    metrics.scores.add(np.array([[2.0], [4.0]], dtype=np.float32), newer)
    found = samples(metrics)
    assert found["tidecast_absolute_error_sum{horizon=1,target=t}"] == 7.0
    assert found["tidecast_absolute_error_count{horizon=1,target=t}"] == 3


def test_the_lag_in_seconds_keeps_growing_while_nothing_is_processed(metrics):
    now = [1_000.0]
    metrics = Metrics(SPEC, [], wall=lambda: now[0])
    metrics.partitions.update("readings", {0: 5, 1: 0}, {0: 2}, {0: 2})
    metrics.partitions.seen(np.array([0, 1, 0], np.int32), np.array([980_000, 900_000, 990_000]))
    assert samples(metrics)["tidecast_lag_seconds{partition=0,topic=readings}"] == 10.0
    now[0] = 1_020.0
    found = samples(metrics)
    assert found["tidecast_lag_seconds{partition=0,topic=readings}"] == 30.0
    assert found["tidecast_lag_seconds{partition=1,topic=readings}"] == 0.0, "nothing is waiting there"
    assert found["tidecast_series{partition=0}"] == 2


@pytest.mark.parametrize("times", [1, 1_000])
def test_of_many_records_of_a_partition_the_last_one_counts(metrics, times):
    metrics.partitions.update("readings", {0: 1, 2: 1}, {}, {})
    metrics.partitions.seen(np.array([2, 0, 2] * times, np.int32), np.array([1, 2, 3] * times) * 100_000)
    found = samples(metrics)
    assert found["tidecast_lag_seconds{partition=0,topic=readings}"] == 800.0
    assert found["tidecast_lag_seconds{partition=2,topic=readings}"] == 700.0


def test_a_partition_that_left_is_no_longer_reported(metrics):
    metrics.partitions.update("readings", {0: 5, 1: 7}, {0: 1, 1: 1}, {0: 1, 1: 1})
    metrics.partitions.update("readings", {1: 7}, {1: 1}, {1: 1})
    assert [k for k in samples(metrics) if k.startswith("tidecast_lag_records")] == [
        "tidecast_lag_records{partition=1,topic=readings}"
    ]


def test_both_exposition_formats_can_be_scraped(metrics):
    metrics.partitions.update("readings", {0: 5}, {0: 1}, {0: 1})
    metrics.batch_size.observe([3])
    assert b"# TYPE tidecast_batch_size histogram" in generate_latest(metrics.registry)
    families = list(text_string_to_metric_families(generate_openmetrics(metrics.registry).decode()))
    assert "tidecast_absolute_error" in {f.name for f in families}


def test_two_workers_in_one_process_do_not_share_counts(metrics):
    count(metrics, result(1))
    assert samples(Metrics(SPEC, []))["tidecast_readings_total"] == 0


@pytest.mark.parametrize("n", [1, 511, 512, 1_000])
def test_the_sums_of_scores_are_those_of_a_plain_sum_for_any_number_of_rows(metrics, n):
    rows = np.random.default_rng(0).normal(size=(n, len(DIAGNOSTICS))).astype(np.float32)
    rows[::3, 2] = np.nan
    metrics.scores.add(rows, SPEC)
    metrics.scores.add(rows, SPEC)
    found = samples(metrics)
    assert found["tidecast_absolute_error_sum{horizon=1,target=t}"] == pytest.approx(2 * rows[:, 0].astype(float).sum())
    assert found["tidecast_naive_error_sum{horizon=1,target=t}"] == pytest.approx(
        2 * np.nansum(rows[:, 2].astype(float))
    )
    assert found["tidecast_naive_error_count{horizon=1,target=t}"] == 2 * (n - len(range(0, n, 3)))


def result(n, spec=SPEC):
    """What came of one batch of `n` readings of partition 1, each with an error of 1."""
    return BatchResult(
        forecasts=OutgoingBatch("forecasts"),
        dead_letters=OutgoingBatch("dead-letters"),
        counts=BatchCounts(readings=n, forecasts=n),
        scores=np.ones((n, len(spec.diagnostics)), dtype=np.float32),
        event_times=np.full(n, 999_000),
        positions=RecordPositions("readings", np.ones(n, np.int32), np.arange(n)),
        spec=spec,
        partitions=np.ones(n, np.int32),
        timestamps=np.full(n, 990_000),
    )


def count(metrics, result):
    """Count a batch, as the commit that contains it does."""
    metrics.count([metrics.emitted(result)])


def test_a_scrape_sees_the_batch_of_just_now_however_small(metrics):
    metrics.partitions.update("readings", {1: 1}, {}, {})
    count(metrics, result(1))
    count(metrics, result(2, msgspec.structs.replace(SPEC, diagnostics=DIAGNOSTICS[:1])))
    found = samples(metrics)
    assert found["tidecast_absolute_error_count{horizon=1,target=t}"] == 3
    assert found["tidecast_naive_error_count{horizon=1,target=t}"] == 1
    assert found["tidecast_event_to_forecast_seconds_count"] == 3
    assert found["tidecast_readings_total"] == 3
    assert found["tidecast_event_to_forecast_seconds_sum"] == 3.0
    assert found["tidecast_lag_seconds{partition=1,topic=readings}"] == 10.0


def test_batches_of_one_reading_do_not_pile_up_where_nobody_scrapes(metrics):
    kept = []
    for _ in range(600):
        one = result(1)
        one.counts.waves.append(1)
        count(metrics, one)
        kept.append(weakref.ref(one.scores))
    del one
    assert sum(each() is not None for each in kept) < 256
    found = samples(metrics)
    assert found["tidecast_readings_total"] == found["tidecast_batch_size_count"] == 600
    assert found["tidecast_stage_seconds_count{stage=step}"] == 600


def test_scrapes_during_counting_lose_and_double_nothing(metrics):
    over = threading.Event()

    def scrape():
        while not over.is_set():
            samples(metrics)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    for _ in range(300):
        count(metrics, result(100))
    over.set()
    scraper.join()
    found = samples(metrics)
    assert found["tidecast_forecasts_total"] == 30_000
    assert found["tidecast_absolute_error_count{horizon=1,target=t}"] == 30_000
    assert found["tidecast_absolute_error_sum{horizon=1,target=t}"] == 30_000.0
    assert found["tidecast_event_to_forecast_seconds_count"] == 30_000


def test_a_model_that_does_not_score_itself_can_be_served_in_large_batches():
    spec = msgspec.structs.replace(SPEC, diagnostics=[])
    scores = ScoreMetrics(spec)
    scores.add(np.empty((4_000, 0), dtype=np.float32), spec)
    assert not [sample for family in scores.collect() for sample in family.samples]


def test_a_worker_that_routes_shows_no_metric_of_models_and_counts_what_it_has_routed():
    metrics = Metrics(None, ["late"], wall=lambda: 1_000.0)
    metrics.partitions.update("source", {0: 5}, {}, {})
    names = {name.partition("{")[0] for name in samples(metrics)}
    assert names - NAMES.keys() == {"tidecast_routed_readings_total"}
    assert not names & {"tidecast_forecasts_total", "tidecast_series", "tidecast_model_info", "tidecast_max_series"}
    alerts = {"readings_total", "replayed_readings_total", "lag_records", "last_commit_timestamp_seconds",
              "kafka_answer_timestamp_seconds", "transactions_total", "start_overs_total", "stalls_total",
              "restoring_partitions", "restore_remaining_records", "dead_letters_total"}  # fmt: skip
    assert {f"tidecast_{name}" for name in alerts} <= names, "alerts that also a router needs have nothing to look at"
