"""`tidecast recipe nab`: the files as NAB's scorer reads them, and the score as NAB's scorer gives it."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from tidecast.service.cli import main
from tidecast.training.recipes.nab import PROFILES, Scored, normalised

SPANS = [(400, 449), (700, 749)]


def scored(*rows: int, length: int = 1_000) -> list[Scored]:
    values = np.zeros(length)
    values[list(rows)] = 1.0
    return [Scored("a.csv", np.arange(length), values)]


def at(*rows: int, profile: str = "standard") -> float:
    return normalised(scored(*rows), {"a.csv": SPANS}, profile, 0.5)


@pytest.mark.parametrize("profile", PROFILES)
def test_no_alarm_is_0_and_each_window_at_its_first_row_is_100(profile):
    assert at(profile=profile) == 0
    assert at(400, 700, profile=profile) == pytest.approx(100)


def test_only_the_first_alarm_in_a_window_counts_and_the_earlier_the_better():
    assert at(400, 410, 420, 700) == at(400, 700)
    assert at(440, 700) < at(410, 700) < at(400, 700)


def test_a_false_alarm_costs_its_weight_and_less_right_after_a_window():
    worth = 4.0  # of two windows, between nothing and perfect
    assert at(400, 700) - at(400, 700, 200) == pytest.approx(100 * 0.11 / worth)
    assert at(400, 700) - at(400, 700, 200, profile="low false positives") == pytest.approx(100 * 0.22 / worth)
    near = 2 / (1 + math.exp(5 * 1 / 49)) - 1
    assert at(400, 700) - at(400, 700, 450) == pytest.approx(-100 * 0.11 * near / worth)


def test_rows_of_the_probation_do_not_count():
    assert at(100, 149, 400, 700) == at(400, 700)
    assert at(150, 400, 700) < at(400, 700)


def test_the_recipe_writes_a_score_for_each_row_and_finds_the_spike(tmp_path, capsys):
    folder = tmp_path / "nab" / "made"
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(1_000):
        stamp = f"2026-01-{1 + i // 288:02} {i // 12 % 24:02}:{i % 12 * 5:02}:00"
        rows.append([stamp, f"{rng.normal() + (40 if i == 600 else 0):.4f}"])
    rows.insert(10, rows[9])  # a row that comes twice gets no forecast, and the score 0
    with (folder / "spike.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["timestamp", "value"], *rows])
    windows = {"made/spike.csv": [[rows[590][0], rows[620][0]]]}
    (tmp_path / "nab" / "windows.json").write_text(json.dumps(windows))
    assert main(["recipe", "nab", "--data", str(tmp_path / "nab"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    with (tmp_path / "out" / "nab" / "made" / "tidecast_spike.csv").open(newline="") as file:
        written = list(csv.reader(file))
    assert written[0] == ["timestamp", "value", "anomaly_score"]
    assert [row[:2] for row in written[1:]] == rows
    values = np.array([float(row[2]) for row in written[1:]])
    assert values[601] > 0.5
    assert (values >= 0).all() and (values <= 1).all() and values[10] == 0
    figures = json.loads((tmp_path / "out" / "nab" / "figures.json").read_text())["figures"]
    standard = next(each["ours"] for each in figures if each["what"] == "standard: at 0.5")
    assert 50 < standard <= 100
    assert "standard: at 0.5" in capsys.readouterr().out


def test_without_the_data_one_sentence_says_what_is_needed(tmp_path, capsys):
    assert main(["recipe", "nab", "--out", str(tmp_path)]) != 0
    assert "Give the folder: --data NAB/data" in capsys.readouterr().err
