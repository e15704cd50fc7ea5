"""Forecasts, and readings that are routed, to JSON, a batch at a time.

orjson writes whole arrays of numbers, each float32 with the fewest digits that identify it. The text is split at the
commas, and each forecast is joined from these numbers and the text that all forecasts of the model share. So no Python
code runs for a single number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import mul
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tidecast.service.model.spec import ModelSpec, quantile_name

Float32 = NDArray[np.float32]
Column = Iterable[bytes]  # a text for each forecast

_NUMBERS_AT_ONCE = 32_768  # so that the data fits in the CPU cache


@dataclass(slots=True)
class RecordPositions:
    """Topic, partitions and offsets of readings. A forecast names its reading as `topic-partition-offset`."""

    topic: str
    partitions: NDArray[np.int32]  # [forecasts]
    offsets: NDArray[np.int64]  # [forecasts]


class ForecastEncoder:
    """Writes the forecasts of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._model = b',"step_ms":%d,"model":%b,"warm":' % (spec.step_ms, orjson.dumps(spec.id))
        self._before_runs, self._end = _runs(spec)
        self._run_length = 1 if spec.kind == "classifier" else spec.horizon
        names = [orjson.dumps(diagnostic.name) + b":" for diagnostic in spec.diagnostics]
        self._score_names = [(b"", name, b"," + name) for name in names]  # left out, the first, a later one

    def encode(
        self, positions: RecordPositions, ts: NDArray[np.int64], warm: NDArray[np.bool_], y: Float32, score: Float32
    ) -> list[bytes]:
        """The values of forecast records.

        Args:
            positions: of the readings.
            ts: [forecasts] ms, of the readings.
            warm: [forecasts].
            y: [forecasts, horizon, targets, quantiles] (a classifier's: [forecasts, classes]), finite.
            score: [forecasts, diagnostics]; scores that are not finite are left out.
        """
        if self._spec.kind != "classifier":
            y = y.transpose(0, 2, 3, 1)  # the order in the text
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, y[:1].size + score.shape[1]))
        values: list[bytes] = []
        for start in range(0, len(ts), at_once):
            part = slice(start, start + at_once)
            theirs = RecordPositions(positions.topic, positions.partitions[part], positions.offsets[part])
            values += self._encode_part(theirs, ts[part], warm[part], y[part], score[part])
        return values

    def _encode_part(
        self, positions: RecordPositions, ts: NDArray[np.int64], warm: NDArray[np.bool_], y: Float32, score: Float32
    ) -> Column:
        columns: list[Column] = [repeat(b'{"ts":'), _texts(ts), repeat(self._model)]
        all_warm = np.count_nonzero(warm) == len(warm)
        columns.append(repeat(b"true") if all_warm else map((b"false", b"true").__getitem__, warm.tolist()))
        columns += [repeat(b',"source":' + orjson.dumps(positions.topic)[:-1] + b"-"), _texts(positions.partitions)]
        columns += [repeat(b"-"), _texts(positions.offsets)]
        runs = _texts(y, self._run_length)
        for i, before in enumerate(self._before_runs):
            columns += [repeat(before), runs[i :: len(self._before_runs)]]
        columns += [repeat(self._end), *self._scores(score), repeat(b"}}")]
        return map(b"".join, zip(*columns, strict=False))  # strict=False: the shared texts repeat without end

    def _scores(self, score: Float32) -> list[Column]:
        """Names and numbers of the finite scores, with commas between them."""
        n, width = score.shape
        if not width:  # the model has no diagnostics
            return []
        score = np.ascontiguousarray(score.T)  # [diagnostics, forecasts]
        texts, scored = _texts(score), np.isfinite(score)
        which = scored.astype(np.int8)  # which of its three names
        if np.count_nonzero(scored) == scored.size:  # nearly always, once the series are warm
            lowest = highest = [1] + [2] * (width - 1)
        else:
            before = np.logical_or.accumulate(scored, axis=0)[:-1]  # True where an earlier score is present
            which[1:] += scored[1:] & before
            lowest, highest = which.min(axis=1).tolist(), which.max(axis=1).tolist()
        columns: list[Column] = []
        for i, names in enumerate(self._score_names):
            theirs = texts[i * n : (i + 1) * n]
            if lowest[i] < highest[i]:
                columns.append(map(names.__getitem__, which[i].tolist()))
                columns.append(map(mul, theirs, scored[i].tolist()))
            elif highest[i]:
                columns += [repeat(names[highest[i]]), theirs]
        return columns


def encode_readings(names: Sequence[str], ts: NDArray[np.int64], x: Float32) -> list[bytes]:
    """Readings in tidecast's own form: `{"ts":1700000000000,"temperature":21.5}`.

    Args:
        names: of the features.
        ts: [readings] ms.
        x: [readings, features]; NaN is left out, but where a reading has nothing else, all of it is null.
    """
    missing = np.isnan(x)
    empty = missing.all(axis=1)
    columns: list[Column] = [repeat(b'{"ts":'), _texts(ts)]
    for name, values, lacks in zip(names, x.T, missing.T, strict=True):
        before = b"," + orjson.dumps(name) + b":"
        left_out = (lacks & ~empty).tolist() if lacks.any() else ()
        columns.append(map((before, b"").__getitem__, left_out) if left_out else repeat(before))
        texts = _texts(values)
        columns.append([b"" if out else text for out, text in zip(left_out, texts, strict=True)] if left_out else texts)
    return list(map(b"".join, zip(*columns, repeat(b"}"), strict=False))) if len(ts) else []


def _runs(spec: ModelSpec) -> tuple[list[bytes], bytes]:
    """The text before each list of numbers, and the text after the last one."""
    if spec.kind == "classifier":
        before = [b"," + orjson.dumps(name) + b":" for name in spec.classes]
        return [b'","classes":{' + before[0][1:], *before[1:]], b'},"score":{'
    before = []
    for target in spec.targets:
        between = (b"]}," if before else b'","targets":{') + orjson.dumps(target) + b":{"
        for quantile in spec.quantiles:
            before.append(between + orjson.dumps(quantile_name(quantile)) + b":[")
            between = b"],"
    return before, b']}},"score":{'


def _texts(numbers: NDArray[Any], together: int = 1) -> list[bytes]:
    """The numbers of an array as JSON; each text holds `together` of them, with commas between them."""
    rows = np.ascontiguousarray(numbers).reshape((-1, together) if together > 1 else -1)
    text = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].split(b"],[") if together > 1 else text[1:-1].split(b",")
