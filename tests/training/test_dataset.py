"""What is trained on is what will be served: the worker's rules for gaps and duplicates hold in the trainer."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tidecast.service.errors import DataError
from tidecast.training.data.dataset import load_dataset
from tidecast.training.linear.ridge import ahead, carried_forward


def test_a_short_gap_becomes_silent_steps(dataset):
    first = dataset.stretches[0]
    assert first.series == "a"
    assert np.flatnonzero(first.rows < 0).tolist() == [100, 101, 102]
    assert np.isnan(first.x[100:103]).all()
    assert (np.diff(first.ts) == 3_600_000).all()


def test_a_long_gap_starts_the_series_again(dataset):
    assert [s.series for s in dataset.stretches] == ["a", "b", "b"]
    assert dataset.restarts == 1
    assert len(dataset.stretches[1].ts) == 200


def test_the_second_reading_of_a_time_is_dropped(dataset):
    assert dataset.duplicates == 1
    assert not (dataset.stretches[0].x == 999).any()


def test_missing_values_are_kept_as_missing_and_counted(dataset):
    assert np.isnan(dataset.stretches[0].x[5, 0])
    assert dataset.missing["load"] > 10
    assert dataset.missing["heat"] == 0


def test_no_validation_rows_is_said_with_the_period_of_the_file(config, daily_file):
    late = msgspec.structs.replace(
        config, data=msgspec.structs.replace(config.data, train_until="2030-01-01", validate_until="2031-01-01")
    )
    with pytest.raises(DataError, match="The file runs from"):
        load_dataset(late, daily_file)


def test_what_follows_a_step_is_one_to_horizon_ahead():
    z = np.arange(5.0)[:, None]
    out = ahead(z, 2)[:, :, 0]
    np.testing.assert_array_equal(out, [[1, 2], [2, 3], [3, 4], [4, np.nan], [np.nan, np.nan]])


def test_carrying_forward_never_looks_ahead_but_for_the_start():
    column = np.array([np.nan, 1, np.nan, np.nan, 2, np.nan])
    np.testing.assert_array_equal(carried_forward(column), [1, 1, 1, 1, 2, 2])


@pytest.mark.parametrize("how", ["keep", "clip", "mask"])
def test_outliers_are_treated_in_training_rows_and_nowhere_else(config, daily_file, how):
    chosen = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, outliers=how))
    path = daily_file.with_name(f"outliers-{how}.csv")
    lines = daily_file.read_text().splitlines()
    for row in (60, 470):  # one before train_until, one after
        time, sensor, _, heat = lines[row].split(",")
        lines[row] = f"{time},{sensor},5000.0,{heat}"
    path.write_text("\n".join(lines) + "\n")
    dataset = load_dataset(chosen, path)
    load = dataset.stretches[0].x[:, 0]
    wild = int((load == 5000).sum())
    assert dataset.outliers["load"] >= 1
    assert wild == (2 if how == "keep" else 1)
    assert (load[dataset.stretches[0].ts >= config.train_until_ms] == 5000).sum() == 1


def test_fill_carries_values_forward_in_training_rows_and_nowhere_else(config, daily_file, dataset):
    chosen = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, missing="fill"))
    filled = load_dataset(chosen, daily_file)
    count = 0
    for before, after in zip(dataset.stretches, filled.stretches, strict=True):
        training = before.ts < config.train_until_ms
        np.testing.assert_array_equal(after.x[~training], before.x[~training])
        holes = np.isnan(before.x[:, 0]) & training
        expected = carried_forward(before.x[:, 0])
        np.testing.assert_array_equal(after.x[training, 0], expected[training])
        count += int(holes.sum())
    assert filled.quality.filled["load"] == count > 20
    assert filled.quality.filled["heat"] == 3  # the silent steps of the short gap
    assert filled.missing == dataset.missing
    assert dataset.quality.filled == {"load": 0, "heat": 0}


def test_fill_does_not_draw_a_straight_line_where_a_sensor_was_long_away(config, daily_file):
    path = daily_file.with_name("away.csv")
    lines = daily_file.read_text().splitlines()
    for row in range(20, 50):  # present, but without a value for 30 hours
        time, sensor, _, heat = lines[row].split(",")
        lines[row] = f"{time},{sensor},NA,{heat}"
    path.write_text("\n".join(lines) + "\n")
    chosen = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, missing="fill"))
    load = load_dataset(chosen, path).stretches[0].x[19:49, 0]
    assert np.isfinite(load[: config.data.max_gap]).all()
    assert np.isnan(load[config.data.max_gap :]).all()
