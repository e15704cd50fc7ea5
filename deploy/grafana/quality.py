"""The board *Forecast quality*: are the forecasts still good, and what happened to the readings?

All of it comes from the scores that the model gives its own earlier forecasts when the actual value arrives.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import GREEN, OURS, RED, YELLOW, bars, board, choice, lines, number, per_second, section

WINDOW = "$window"  # the board's own variable
LEAD = "{{target}}, lead {{horizon}}"
LEVEL = LEAD + ", {{level}}"
SIGNED = [(None, RED), (0.0, YELLOW), (0.1, GREEN)]  # of a skill
OFF = [(None, RED), (-0.08, GREEN), (0.08, RED)]  # of a coverage: the limits of the alert


def mean(metric: str, window: str = WINDOW, by: str = "target, horizon") -> str:
    """The mean of what was scored within the window."""
    return " / ".join(per_second(f"{metric}_{part}", by, window) for part in ("sum", "count"))


def skill(window: str = WINDOW) -> str:
    """1 - error / naive error: 1 is perfect, 0 no better than no model."""
    error, naive = (per_second(f"{kind}_error_sum", "target, horizon", window) for kind in ("absolute", "naive"))
    return f"1 - {error} / {naive}"


def off(window: str = WINDOW) -> str:
    """Coverage above its level."""
    level = f"max by (target, horizon, level) (tidecast_interval_level{{{OURS}}})"
    return f"{mean('interval_coverage', window, 'target, horizon, level')} - {level}"


def of_readings(metric: str, by: str = "") -> str:
    """As a share of the readings."""
    above = per_second(metric, by, WINDOW)
    match = f"ignoring ({by}) group_left " if by else ""
    return f"{above} / {match}{per_second('readings_total', window=WINDOW)}"


def build() -> dashboard.Dashboard:
    """The whole board."""
    about = "Error compared with the naive forecast (the value stays as it is), coverage, drift, and readings not used."
    made = board("tidecast-quality", "tidecast: Forecast quality", about, "Operations", "now-6h")
    made.with_variable(choice("window", "Over", ["1m", "5m", "15m", "1h", "6h", "1d"], "15m"))

    section(
        made, "At a glance",
        number("Worst skill", "The lowest among targets and leads. 1 is perfect, below 0 the naive forecast is better.",
               "percentunit", {"skill": f"min({skill()})"}, SIGNED, span=6),
        number("Coverage furthest off", "The largest distance of a coverage from its level; the alert is at 8 points.",
               "percentunit", {"off": f"max(abs({off()}))"}, [(None, GREEN), (0.05, YELLOW), (0.08, RED)], span=6),
        number("Forecasts scored", "Forecasts whose actual value has arrived, each second. All other panels use these.",
               "cps", {"judged": per_second("absolute_error_count", window=WINDOW)}, [(None, GREEN)], span=6),
        number("Dead letters", "Share of readings that could not be used; the alert is at 1 %.", "percentunit",
               {"share": of_readings("dead_letters_total")}, [(None, GREEN), (0.001, YELLOW), (0.01, RED)], span=6),
    )  # fmt: skip

    section(
        made, "Error against the naive forecast",
        lines("Mean absolute error", "Of the forecasts' median, in the target's unit, compared with the naive "
              "forecast, by lead in steps.", "short",
              {f"{LEAD}: forecast": mean("absolute_error"), f"{LEAD}: naive": mean("naive_error")}, span=9),
        lines("Skill", "1 - error / naive error, by lead in steps. Below the line no model would be better.",
              "percentunit", {LEAD: skill()}, span=9, steps=[(None, RED), (0, GREEN)], low=None),
        bars("Skill by lead", "Over the whole time shown.", "percentunit", {LEAD: skill("$__range")}, SIGNED,
             low=-0.5, high=1, span=6),
    )  # fmt: skip

    level = f"max by (target, horizon, level) (tidecast_interval_level{{{OURS}}})"
    section(
        made, "Intervals",
        lines("Coverage", "Share of actual values inside the interval, compared with its level.", "percentunit",
              {f"{LEVEL}: inside": mean("interval_coverage", by="target, horizon, level"),
               f"{LEVEL}: expected": level}, span=9, low=None),
        lines("Coverage above its level", "Below 0 intervals are too narrow, above too wide. The lines: the alert's.",
              "percentunit", {LEVEL: off()}, span=9, steps=OFF, low=None),
        bars("Coverage above its level, by lead", "Over the whole time shown.", "percentunit",
             {LEVEL: off("$__range")}, OFF, low=-0.2, high=0.2, span=6),
    )  # fmt: skip

    section(
        made, "Drift",
        lines("Error against the past day", "Error within the window over that of the past day, less 1: +100 % is "
              "twice as large. The stream has changed, or is hard to forecast at the moment.", "percentunit",
              {LEAD: f"({mean('absolute_error')}) / ({mean('absolute_error', '1d')}) - 1"}, low=None),
        lines("Skill against the past day", "Skill within the window, less that of the past day: below 0 the model has "
              "become worse compared with the naive forecast.", "percentunit", {LEAD: f"({skill()}) - ({skill('1d')})"},
              steps=[(None, RED), (-0.1, GREEN)], low=None),
        lines("Clipped values", "Share of readings with a value outside of the trained range, replaced by the "
              "limit.", "percentunit", {"{{target}}": of_readings("clipped_values_total", "target")}),
    )  # fmt: skip

    of_model = "{{model}}: {{target}}, lead {{horizon}}"
    section(
        made, "Models side by side",
        lines("Mean absolute error, by model", "Of the champion, which answers, and of its shadows, on the same "
              "readings. Empty without `serve --shadow`.", "short",
              {of_model: mean("model_absolute_error", by="model, target, horizon")}),
        lines("Roles", "1 where a worker runs the model: as the champion, or as a shadow.", "short",
              {"{{name}}: {{role}}": f"max by (name, role) (tidecast_model_info{{{OURS}}})"}),
        lines("Evidence that a shadow is better", "The e-value of its test against the champion, with "
              "`serve --promote auto`; from 100 for each shadow on it takes over.", "short",
              {"{{model}}": f"max by (model) (tidecast_promotion_evidence{{{OURS}}})"}),
    )  # fmt: skip

    section(
        made, "Readings",
        lines("Dead letters, by reason", "Each is in the dead-letter topic, unchanged, with the reason in its headers.",
              "cps", {"{{reason}}": per_second("dead_letters_total", "reason", WINDOW)}, span=6),
        lines("Gaps", "Filled: the model made the missing steps by itself. Restarted: too many were missing.", "cps",
              {"{{action}}": per_second("gaps_total", "action", WINDOW),
               "steps made": per_second("silent_steps_total", window=WINDOW)}, span=6),
        lines("Series that were reset", "By reason: too long a gap, a tombstone, eviction, idle for too long, or a "
              "state that was not finite.", "cps",
              {"{{reason}}": per_second("resets_total", "reason", WINDOW)}, span=6),
        lines("Late readings and duplicates", "Older than their series' last, or of the same time: no forecast.", "cps",
              {"late": per_second("late_readings_total", window=WINDOW),
               "duplicate": per_second("duplicate_readings_total", window=WINDOW)}, span=6),
    )  # fmt: skip
    return made
