"""What training prints, on the terminal that most have at first: 80 columns."""

import io

import pytest
from rich.console import Console

from tidecast.service.terminal import fitted
from tidecast.training.progress import Progress
from tidecast.training.report.tables import grid


def on_terminal(thing: object, width: int) -> list[str]:
    shown = io.StringIO()
    Console(file=shown, width=width).print(thing)
    return [line.rstrip() for line in shown.getvalue().splitlines()]


@pytest.mark.parametrize(("width", "blanks"), [(80, False), (120, True)])
def test_the_table_of_errors_breaks_no_word(width: int, blanks: bool) -> None:
    head = ["method", "MAE +1h", "MAE +9h", "MAE +16h", "MAE +1d", "MAE mean", "RMSE mean", "CRPS mean", "our gain"]
    body = [[name, *["0.9485"] * 7, "+24.6 %"] for name in ("linear autoregression", "seasonal naive (1d)")]
    table = fitted(grid("temp in °F", head, body), Console(width=width))
    text = on_terminal(table, width)
    assert max(map(len, text)) <= width
    assert sum("linear autoregression" in line for line in text) == 1
    assert any("│ 0.9485 │" in line for line in text) == blanks


@pytest.mark.parametrize(("width", "loss"), [(80, False), (120, True)])
def test_the_bars_say_what_is_done_and_how_well_and_nothing_is_cut_off(
    width: int, loss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with Progress() as progress:
        assert progress.live
        progress.stage("folding the readings into the model's inputs")
        progress.fraction(0.5)
        (fold,) = on_terminal(progress.bars.get_renderable(), width)
        progress.epochs("member 1 of 5", 40)(7, 0.44, 0.3855, 0.3807)
        (fit,) = on_terminal(progress.bars.get_renderable(), width)
        progress.stage("evaluating on the test rows")
        (last,) = on_terminal(progress.bars.get_renderable(), width)
    assert "…" not in fold + fit + last
    assert "7/40" not in last and "50/100" not in last  # a finished bar is not shown as stopped half-way
    assert fold.startswith("folding the readings into the model's inputs") and "50/100" in fold
    assert "validation 0.3855  best 0.3807" in fit and "7/40" in fit
    assert ("loss 0.4400" in fit) == loss
