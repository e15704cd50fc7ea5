"""`nab`: the Numenta Anomaly Benchmark (Lavin and Ahmad 2015), by a starter's anomaly score.

Every CSV file below `--data` goes through the worker's own pipeline, row by row, as one series of a starter: no
training, no look ahead, no labels, one set of constants for all files. The scores are written as NAB's own scorer reads
them: `<category>/tidecast_<file>.csv` with timestamp, value and anomaly_score. Where NAB's windows are found, next to
the files or in its `labels` folder, the figures of these files are printed too: at 0.5, where the score itself says
alarm, and at the best of all thresholds, as NAB does it.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.datafiles.table import Columns, Table, read_table
from tidecast.service.errors import DataError
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline
from tidecast.service.pipeline.policy import Policy
from tidecast.service.pipeline.replay_file import Tally, replay
from tidecast.training.recipes.parts.show import Kit, Line, Outcome
from tidecast.training.starter import StarterConfig, make_starter

ALARMS_A_WEEK = 0.5
ALARM = 0.5
PROBATION, LONGEST_PROBATION = 0.15, 750  # rows at first, which do not count
PROFILES = {"standard": (1.0, 0.11), "low false positives": (1.0, 0.22), "low false negatives": (2.0, 0.11)}
PUBLISHED = {"standard": "70.1, 74.9"}  # on all 58 files: HTM; the best, ARTime
LABELS = ("windows.json", "combined_windows.json", "labels/combined_windows.json", "../labels/combined_windows.json")
LONG_AFTER = 3.0  # lengths of a window after it: a false alarm there counts in full
THRESHOLDS = 400  # that are tried
MINUTE_MS = 60_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """One file."""

    name: str  # its path below the folder
    ts: NDArray[np.int64]  # ms
    scores: Floats


def run(kit: Kit) -> Outcome:
    """Score all files, write the results, and judge those that have windows."""
    if kit.data is None or not kit.data.is_dir():
        raise DataError("nab needs NAB's data", got=str(kit.data), do="Give the folder: --data NAB/data")
    files = sorted(path for path in kit.data.rglob("*.csv") if not path.name.startswith("tidecast_"))
    if not files:
        raise DataError("nab found no CSV file", got=str(kit.data), do="Give the folder of NAB's data: --data NAB/data")
    files = files[:: kit.full(1, max(1, len(files) // 2))]
    models: dict[int, Model] = {}
    kit.progress.stage(f"nab: {len(files)} files")
    found = []
    for done, path in enumerate(files):
        found.append(score(path, kit, models))
        kit.progress.fraction((done + 1) / len(files))
    windows = _windows(kit.data)
    judged = [one for one in found if one.name in windows]
    spans = {one.name: _rows(one, windows[one.name]) for one in judged}
    lines = [Line("files, and of them with windows", f"{len(found)}, {len(judged)}")]
    if sum(map(len, spans.values())):
        candidates = np.unique(np.concatenate([one.scores[one.scores > 0] for one in judged]))
        candidates = np.quantile(candidates, np.linspace(0, 1, THRESHOLDS)) if len(candidates) else np.array([ALARM])
        for profile in PROFILES:
            best = max(normalised(judged, spans, profile, threshold) for threshold in candidates.tolist())
            at_alarm = normalised(judged, spans, profile, ALARM)
            lines.append(Line(f"{profile}: at 0.5", at_alarm, PUBLISHED.get(profile, "–")))
            lines.append(Line(f"{profile}: at the best threshold", best, PUBLISHED.get(profile, "–")))
    return Outcome("Numenta Anomaly Benchmark, a starter's anomaly score (100 = perfect, 0 = no alarm)", lines)


def score(path: Path, kit: Kit, models: dict[int, Model]) -> Scored:
    """The anomaly score of each row, 0 where the worker gives no forecast; written in NAB's layout."""
    assert kit.data is not None
    table = read_table(path, Columns(time="timestamp", features=("value",), series=None, name="value"))
    steps = np.diff(table.ts)
    step_ms = max(MINUTE_MS, round(float(np.median(steps)) / MINUTE_MS) * MINUTE_MS) if len(steps) else MINUTE_MS
    if step_ms not in models:
        folder = kit.out / f"model-{step_ms // MINUTE_MS}min"
        folder.mkdir(exist_ok=True)
        make_starter(StarterConfig(step_ms=step_ms, features=["value"], targets=["value"], horizon=1,
                                   alarms_a_week=ALARMS_A_WEEK), folder)  # fmt: skip
        models[step_ms] = Model.load(folder / "model.onnx")
    scores = _scores(models[step_ms], table)
    name = path.relative_to(kit.data)
    out = kit.out / name.parent / f"tidecast_{name.name}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with path.open(newline="", encoding="utf-8") as source, out.open("w", newline="", encoding="utf-8") as target:
        rows, writer = csv.reader(source), csv.writer(target)
        writer.writerow([*next(rows)[:2], "anomaly_score"])
        writer.writerows([*row[:2], f"{one:.6g}"] for row, one in zip(rows, scores.tolist(), strict=True))
    return Scored(name.as_posix(), table.ts, scores)


def _scores(model: Model, table: Table) -> Floats:
    policy = Policy(max_gap_steps=1_000_000, max_future_ms=0, records_are_dated=False)
    pipeline = Pipeline(model, policy, output_topic="forecasts", dead_letter_topic="dead")
    scores = np.zeros(len(table))
    for lines in replay(pipeline, [table], Tally()):
        for line in lines:
            made = msgspec.json.decode(line)
            scores[int(made["source"].rpartition("-")[2])] = made["score"].get("anomaly_value", 0.0)
    return scores


def _windows(folder: Path) -> dict[str, list[list[str]]]:
    for place in LABELS:
        if (folder / place).is_file():
            found: dict[str, list[list[str]]] = json.loads((folder / place).read_text(encoding="utf-8"))
            return found
    return {}


def _rows(one: Scored, windows: list[list[str]]) -> list[tuple[int, int]]:
    """The first and the last row of each window."""
    spans = []
    for window in windows:
        ends = [int(np.datetime64(text.replace(" ", "T"), "ms").astype(np.int64)) for text in window]
        inside = np.flatnonzero((one.ts >= ends[0]) & (one.ts <= ends[1]))
        if len(inside):
            spans.append((int(inside[0]), int(inside[-1])))
    return spans


def normalised(files: list[Scored], spans: dict[str, list[tuple[int, int]]], profile: str, threshold: float) -> float:
    """NAB's score of all files at one threshold: 100 = every window at its beginning and nothing else, 0 = no alarm."""
    missed_weight, false_weight = PROFILES[profile]
    total, count = 0.0, 0
    for one in files:
        rows = np.flatnonzero(one.scores >= threshold)
        probation = min(int(PROBATION * len(one.scores)), LONGEST_PROBATION)
        rows = rows[rows >= probation]
        outside = np.ones(len(rows), bool)
        place = np.full(len(rows), -1.0)  # of a false alarm: -1 = far from any window before it
        for first, last in spans[one.name]:
            length = last - first + 1
            after = rows > last
            place[after] = [_sigmoid((row - last) / max(length - 1, 1)) for row in rows[after].tolist()]
            inside = (rows >= first) & (rows <= last)
            outside &= ~inside
            if last < probation:
                continue
            count += 1
            hit = rows[inside]
            total += _sigmoid(-(last - hit[0] + 1) / length) / _sigmoid(-1.0) if len(hit) else -missed_weight
        total += false_weight * float(place[outside].sum())
    null = -missed_weight * count
    return 100 * (total - null) / (count - null) if count else 0.0


def _sigmoid(y: float) -> float:
    return -1.0 if y > LONG_AFTER else 2 / (1 + math.exp(5 * y)) - 1
