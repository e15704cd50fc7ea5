"""The model card tells what was found in the data: a reader must be able to trust its counts and places."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.daily import HOUR, START
from tidecast.service.timestamps import format_time
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset, load_dataset
from tidecast.training.report.data_section import card_lines


def changed(config: Config, **data: object) -> Config:
    return msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, **data))


def card(dataset: Dataset, config: Config) -> str:
    limits = np.array([[-1.5, 1234.0]] * len(config.features))
    return "\n".join(card_lines(dataset, config, limits))


@pytest.fixture
def awkward(daily_file: Path) -> Path:
    """The daily file with a swapped pair of rows, a repeated row, a reading off its step, an outlier, a constant."""
    lines = daily_file.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    rows = [[*row, "7" if row[1] == "a" else str(i % 5), "3"] for i, row in enumerate(rows)]
    rows[300], rows[301] = rows[301], rows[300]
    rows.insert(401, rows[400])  # says the same again
    rows[10][0] = format_time(START + 10 * HOUR + HOUR // 4)
    rows[60][2] = "5000"
    path = daily_file.with_name("awkward.csv")
    path.write_text("\n".join([lines[0] + ",valve,rate", *(",".join(row) for row in rows)]) + "\n")
    return path


def test_what_is_wrong_with_a_file_is_counted_as_it_was_made(config, awkward):
    chosen = changed(config, covariates=["heat", "valve", "rate"], outliers="mask")
    dataset = load_dataset(chosen, awkward)
    of = dataset.quality
    assert (of.series, of.unsorted, of.gaps, of.irregular) == (2, 1, 1, 2)
    assert (dataset.duplicates, of.contradictions) == (2, 1)
    assert (of.longest.steps, of.longest.series) == (30, "b")
    assert format_time(of.longest.after) == format_time(START + 199 * HOUR)
    assert (of.ranges["rate"].constant, of.ranges["valve"].constant) == (["a", "b"], ["a"])
    assert of.in_a_row["load"] == 1
    (spot,) = of.outliers["load"]
    assert (spot.series, spot.ts, spot.value) == ("a", START + 59 * HOUR, 5000)
    assert np.isnan(spot.became)
    assert of.ranges["load"].high < 100  # the outlier was not trained on


def test_the_card_says_what_was_found_where_and_what_was_done(config, awkward):
    chosen = changed(config, covariates=["heat", "valve", "rate"], outliers="clip", units={"load": "kW"})
    text = card(load_dataset(chosen, awkward), chosen)
    for expected in (
        "| load | target | kW |",
        "| -1.5 to 1,234 |",
        "2 (1 with other values) | the first in the file was kept |",
        "| rows out of order | 1 |",
        "1, the longest 30 after",
        "of b | the series starts again, cold |",
        "| readings off their step | 2 by more than a tenth of it |",
        "| constant in training rows | valve of a; rate |",
        "of a | 5,000 |",
        "clipped to what the filter allows",
        "Looked for and not found: no value in training rows.",
    ):
        assert expected in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (4, 5, 11) for line in table)  # no cell breaks its table


def test_a_feature_without_a_value_in_training_rows_is_named(config, daily_file):
    path = daily_file.with_name("late.csv")
    lines = daily_file.read_text().splitlines()
    late = [lines[0], *(",".join([*line.split(",")[:3], ""]) for line in lines[1:])]
    path.write_text("\n".join(late) + "\n")
    text = card(load_dataset(config, path), config)
    assert "| no value in training rows | heat |" in text
    assert "| heat | covariate |  | - | - | - |" in text


def test_the_first_outliers_are_the_first_by_time_over_all_series(config, daily_file):
    path = daily_file.with_name("wild.csv")
    lines = daily_file.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    wild = {"a": (150, 180, 210), "b": (20, 40, 60)}
    for row in rows:
        if any(row[0] == format_time(START + i * HOUR) for i in wild[row[1]]):
            row[2] = "5000"
    path.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n")
    dataset = load_dataset(config, path)
    assert dataset.outliers["load"] == 6
    assert [(o.series, o.ts) for o in dataset.quality.outliers["load"]] == [("b", START + i * HOUR) for i in wild["b"]]
    assert "Outliers, the first 3 of each feature" in card(dataset, config)


def test_the_card_of_a_filled_training_says_how_many_were_filled(config, daily_file):
    chosen = changed(config, missing="fill")
    dataset = load_dataset(chosen, daily_file)
    text = card(dataset, chosen)
    filled = dataset.quality.filled
    assert f"at most 24 steps ({sum(filled.values())} values" in text
    assert text.splitlines()[4].endswith("| filled |") and text.splitlines()[6].endswith(f"| {filled['load']} |")


def test_without_a_step_the_card_tells_how_far_readings_lie_apart_instead_of_gaps(config, awkward):
    chosen = msgspec.structs.replace(
        changed(config, step="0"), model=msgspec.structs.replace(config.model, lags=[], calendar=["day"])
    )
    text = card(load_dataset(chosen, awkward), chosen)
    assert "with irregular steps" in text and "gaps" not in text
    assert "| time between readings | 2,700 to 111,600 s, median 3,600 s |" in text


def test_where_columns_are_series_the_range_of_each_is_reported(config, awkward):
    chosen = changed(config, series="columns", targets=["load", "valve"], covariates=[])
    dataset = load_dataset(chosen, awkward)
    lines = card(dataset, chosen).splitlines()
    valve = next(line for line in lines if line.startswith("| valve |"))
    assert valve == "| valve | 0 | 7 | 7 |"
    assert any(line.startswith("| load | ") for line in lines)
