import io
import math

import pytest

from tidecast.service.demo.display import LiveTable, PlainLines, error_lines
from tidecast.service.demo.scoreboard import ForecastInterval, Scoreboard

STEP = 3_600_000


def forecast(*mids: float, width: float = 1.0) -> dict[str, list[float]]:
    return {
        "p5": [m - width for m in mids],
        "p50": list(mids),
        "p95": [m + width for m in mids],
    }


def test_a_forecast_is_scored_against_the_reading_of_the_time_it_was_for() -> None:
    board = Scoreboard()
    board.reading("a", 0, 10.0)
    board.forecast("a", 0, STEP, True, forecast(12.0, 20.0))
    board.reading("a", STEP, 11.5)
    board.forecast("a", STEP, STEP, True, forecast(0.0, 0.0))
    board.reading("a", 2 * STEP, 17.0)
    one, two = board.errors[1], board.errors[2]
    assert one.count == 2 and one.model == pytest.approx(0.5 + 17.0) and one.naive == pytest.approx(1.5 + 5.5)
    assert two.count == 1 and two.mae == 3.0 and two.naive_mae == 7.0 and two.skill == pytest.approx(1 - 3 / 7)
    assert one.inside == 1 and two.coverage == 0.0


def test_it_does_not_matter_which_topic_is_read_first() -> None:
    def fed(readings_first: bool) -> dict[int, tuple[int, float, float, int]]:
        board = Scoreboard()
        steps = range(30)
        readings = [lambda t=t: board.reading("a", t * STEP, float(t * t % 17)) for t in steps]
        forecasts = [
            lambda t=t: board.forecast("a", t * STEP, STEP, True, forecast(*(float(t + h) for h in range(5))))
            for t in steps
        ]
        pairs = zip(readings, forecasts, strict=True)
        events = [*readings, *forecasts] if readings_first else [event for pair in pairs for event in pair]
        for event in events:
            event()
        return {h: (e.count, e.model, e.naive, e.inside) for h, e in board.errors.items()}

    assert fed(True) == fed(False)
    assert fed(True)[1][0] == 29 and fed(True)[5][0] == 25


def test_series_are_never_scored_against_each_other() -> None:
    board = Scoreboard()
    for key, value in (("a", 1.0), ("b", 100.0)):
        board.reading(key, 0, value)
        board.forecast(key, 0, STEP, True, forecast(value))
    board.reading("a", STEP, 1.0)
    board.reading("b", STEP, 100.0)
    assert board.errors[1].count == 2 and board.errors[1].model == 0.0


def test_a_forecast_that_arrives_twice_counts_once() -> None:
    board = Scoreboard()
    board.reading("a", 0, 1.0)
    board.forecast("a", 0, STEP, True, forecast(1.0))
    board.reading("a", STEP, 2.0)
    board.forecast("a", 0, STEP, True, forecast(1.0))
    assert board.errors[1].count == 1 and board.forecasts == 1


def test_cold_forecasts_and_those_before_the_start_are_not_counted() -> None:
    board = Scoreboard(start_ms=2 * STEP)
    for t, warm in enumerate((True, True, False, True)):
        board.reading("a", t * STEP, 1.0)
        board.forecast("a", t * STEP, STEP, warm, forecast(1.0))
    board.reading("a", 4 * STEP, 1.0)
    assert board.errors[1].count == 1


def test_missing_values_are_not_scored() -> None:
    board = Scoreboard()
    board.reading("a", 0, None)
    board.forecast("a", 0, STEP, True, forecast(1.0))
    board.reading("a", STEP, 1.0)
    board.forecast("a", STEP, STEP, True, forecast(1.0))
    board.reading("a", 2 * STEP, None)
    assert board.errors[1].count == 0 and math.isnan(board.errors[1].mae)


def test_a_row_has_the_earlier_forecast_for_its_time_and_the_newest_forecast() -> None:
    board = Scoreboard()
    board.reading("a", 0, 10.0)
    board.forecast("a", 0, STEP, True, forecast(12.0, 20.0))
    board.reading("a", STEP, 11.5)
    [row] = board.rows()
    assert (row.series, row.ts, row.actual) == ("a", STEP, 11.5)
    assert row.before == ForecastInterval(11.0, 12.0, 13.0)
    assert row.ahead == ForecastInterval(19.0, 20.0, 21.0) and row.ahead_ts == 2 * STEP
    assert board.level == pytest.approx(0.9)


def test_a_model_without_a_fixed_step_is_not_scored_at_wrong_times() -> None:
    board = Scoreboard()
    board.reading("a", 0, 1.0)
    board.forecast("a", 0, 0, True, forecast(1.0))
    board.reading("a", 5, 1.0)
    assert board.errors == {} and error_lines(board, "") == []


def test_a_long_run_forgets_what_can_no_longer_be_matched() -> None:
    board = Scoreboard()
    for t in range(5_000):
        board.reading("a", t * STEP, 1.0)
        board.forecast("a", t * STEP, STEP, True, forecast(1.0, 1.0))
    one = board.series["a"]
    assert max(len(one.actual), len(one.waiting), len(one.one_step)) < 3_000
    assert board.errors[2].count == 4_998


def test_plain_lines_have_series_value_forecast_and_skill(capsys: pytest.CaptureFixture[str]) -> None:
    board = Scoreboard()
    board.reading("EWR", 0, 10.0)
    board.forecast("EWR", 0, STEP, True, forecast(12.0, 20.0))
    board.reading("EWR", STEP, 11.5)
    PlainLines("temp", "°F").show(board)
    out = capsys.readouterr().out
    assert "EWR  temp 11.5 °F" in out and "12.0 (11.0 … 13.0)" in out
    assert "1h ahead: mean absolute error 0.50 °F, persistence 1.50 °F, skill +67%" in out


def test_the_live_table_fits_a_terminal_of_80_columns_and_breaks_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    console = pytest.importorskip("rich.console", reason="needs tidecast[train]").Console
    monkeypatch.setenv("COLUMNS", "80")
    board = Scoreboard()
    for i in range(30):
        board.reading("JFK", i * STEP, 60.0)
        board.forecast("JFK", i * STEP, STEP, True, forecast(*[161.2] * 24, width=100.0))
    table = LiveTable("temp", "°F", "weather, live")
    try:
        shown = io.StringIO()
        console(file=shown, width=80).print(table.draw(board))
    finally:
        table.close()
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if "JFK" in line]
    assert "1970-01-02 05:00" in row and row.count("61.2 … 261.2") == 2
