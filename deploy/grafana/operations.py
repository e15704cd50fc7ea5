"""The board *Operations*: are there forecasts, and if not, what blocks them?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import GREEN, OURS, RED, YELLOW, Queries, bars, board, lines, number, per_second, quantiles, rows, section


def by_instance(metric: str, legend: str = "{{instance}}") -> Queries:
    """The sum over each worker's labels."""
    return {legend: f"sum by (instance) ({metric}{{{OURS}}})"}


def build() -> dashboard.Dashboard:
    """The whole board."""
    about = "Rate, lag, latency, commits, restore and resources of the workers. docs/runbook.md says what to do."
    made = board("tidecast-operations", "tidecast: Operations", about, "Forecast quality", "now-30m")
    section(
        made, "At a glance",
        number("Forecasts", "Forecasts written each second by all workers.", "cps",
               {"forecasts": per_second("forecasts_total")}, [(None, GREEN)]),
        number("Workers", "Workers that Prometheus scrapes. More workers than partitions are of no use.", "short",
               {"workers": f"count(tidecast_build_info{{{OURS}}}) or vector(0)"}, [(None, RED), (1, GREEN)]),
        number("Readings waiting", "In all partitions that a worker holds.", "short",
               {"readings": f"sum(tidecast_lag_records{{{OURS}}})"}, [(None, GREEN), (1_000, YELLOW), (100_000, RED)]),
        number("Oldest waiting reading", "Age of the last reading processed, if more are waiting.", "s",
               {"age": f"max(tidecast_lag_seconds{{{OURS}}})"}, [(None, GREEN), (10, YELLOW), (60, RED)]),
        number("Since Kafka answered", "The longest among the workers; an idle one asks every 10 s.", "s",
               {"since": f"max(time() - (tidecast_kafka_answer_timestamp_seconds{{{OURS}}} > 0))"},
               [(None, GREEN), (20, YELLOW), (60, RED)]),
        number("Partitions being restored", "Their states are not restored yet, so their readings are not answered.",
               "short", {"partitions": f"sum(tidecast_restoring_partitions{{{OURS}}})"}, [(None, GREEN), (1, YELLOW)]),
    )  # fmt: skip

    section(
        made, "Flow",
        lines("Readings and forecasts", "Readings taken and forecasts written, by worker. The difference "
              "is dead letters, late readings and duplicates.", "cps",
              {"{{instance}} readings": per_second("readings_total", "instance"),
               "{{instance}} forecasts": per_second("forecasts_total", "instance")}),
        lines("Readings waiting, by partition", "Lag in records. If only one partition is high, its series send more "
              "than one worker can answer.", "short",
              {"{{topic}}-{{partition}}": f"sum by (topic, partition) (tidecast_lag_records{{{OURS}}})"},
              steps=[(None, GREEN), (1_000, RED)]),
        lines("Age of waiting readings, by partition", "Lag in seconds: the age of the last reading processed; "
              "0 if none is waiting.", "s",
              {"{{topic}}-{{partition}}": f"max by (topic, partition) (tidecast_lag_seconds{{{OURS}}})"},
              steps=[(None, GREEN), (60, RED)]),
        lines("From event to forecast", "From the event time of a reading to its forecast handed to Kafka. "
              "Replayed rows of the past are days old.", "s",
              quantiles("tidecast_event_to_forecast_seconds"), log=True),
        lines("Batch size", "Readings in one call of the model. Larger batches cost less for each reading.", "short",
              quantiles("tidecast_batch_size", shares=(0.5, 0.95)), log=True),
        lines("Readings not answered", "Late readings and duplicates get no forecast; readings are read again to bring "
              "restored states up to date.", "cps",
              {"late": per_second("late_readings_total"), "duplicate": per_second("duplicate_readings_total"),
               "read again": per_second("replayed_readings_total")}),
    )  # fmt: skip

    mean_rate = f"avg by (stage) (rate(tidecast_stage_seconds_sum{{{OURS}}}[$__rate_interval]))"
    section(
        made, "Where the time goes",
        lines("Share of the loop's time, by stage", "Mean of the workers. A large share of `poll` is waiting for "
              "readings, so there is spare capacity.", "percentunit", {"{{stage}}": mean_rate},
              span=12, stacked=True),
        lines("Time of a batch, by stage (p99)", "One in a hundred batches takes longer in this stage.", "s",
              quantiles("tidecast_stage_seconds", "stage", (0.99,)), span=12, log=True),
    )  # fmt: skip

    section(
        made, "Commits, states and the group",
        lines("Commits", "Transactions (or offset commits, at least once) by outcome. After a failed one the worker "
              "starts over from what is committed.", "cps",
              {"{{outcome}}": per_second("transactions_total", "outcome"),
               "start overs": per_second("start_overs_total")}),
        lines("Since the last commit", "Time since Kafka accepted one. Also grows while no readings arrive.", "s",
              {"{{instance}}": f"max by (instance) (time() - (tidecast_last_commit_timestamp_seconds{{{OURS}}} > 0))"}),
        lines("Rebalances and stalls", "In five minutes. Workers that start or stop cause rebalances; a stall is a "
              "loop that the watchdog found hanging.", "short",
              {"{{instance}} rebalances": f"sum by (instance) (increase(tidecast_rebalances_total{{{OURS}}}[5m]))",
               "{{instance}} stalls": f"sum by (instance) (increase(tidecast_stalls_total{{{OURS}}}[5m]))"}),
        lines("States written", "Records written to the changelog: the rolling flush, and all at a hand-over.", "cps",
              {"{{instance}}": per_second("changelog_records_total", "instance")}),
        lines("States not written yet", "Series whose state is newer than in the changelog. A restart has to "
              "replay their readings.", "short", by_instance("tidecast_unwritten_series")),
        lines("Restore", "Records of the changelog still to be read before the states are back, and how long the last "
              "restore took.", "short",
              by_instance("tidecast_restore_remaining_records", "{{instance}} records to read")
              | by_instance("tidecast_restore_seconds", "{{instance}} last one, s")),
    )  # fmt: skip

    share = f"sum by (instance) (tidecast_series{{{OURS}}}) / on (instance) tidecast_max_series{{{OURS}}}"
    section(
        made, "Resources",
        lines("Memory", "Resident memory of each worker.", "bytes", by_instance("process_resident_memory_bytes")),
        lines("Processor", "Cores in use; the loop itself uses at most one.", "short",
              {"{{instance}}": f"sum by (instance) (rate(process_cpu_seconds_total{{{OURS}}}[$__rate_interval]))"}),
        lines("Series held", "Series whose state is in memory, by worker.", "short", by_instance("tidecast_series")),
        bars("Series held, of max_series", "Beyond 100 % the least recently seen series is evicted.", "percentunit",
             {"{{instance}}": share}, [(None, GREEN), (0.8, YELLOW), (0.9, RED)], low=0, high=1),
        lines("Newer models", "Models that took over or were refused, in an hour.", "short",
              {"{{outcome}}": f"sum by (outcome) (increase(tidecast_model_swaps_total{{{OURS}}}[1h]))"}),
        rows("What is served", "Model and hash by worker; they differ during a swap.",
             f"tidecast_model_info{{{OURS}}}", ["__name__", "job"]),
    )  # fmt: skip
    return made
