"""Forecasts to JSON, a batch at a time.

All that is the same in each forecast of a model is a template; a batch is a matrix of its copies, one row each, into
which the numbers are written by columns, as words of 4 bytes (`service.decimals`). Without its NULs the matrix is the
text of all forecasts, a line each.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.decimals import OFFSET_WORDS, PARTITION_WORDS, TIME_WORDS, Words, float_words, whole_words
from service.spec import ModelSpec, quantile_name

Float32 = NDArray[np.float32]
Columns = NDArray[np.int64]

_NONE: Columns = np.empty(0, dtype=np.int64)
_NO_WORDS: Words = np.empty((0, 0), dtype=np.uint32)
_NUMBERS_AT_ONCE = 8192  # so that what is worked on stays in the cache
_json = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Sources:
    """Where the readings that are answered lie. A forecast says it as `topic-partition-offset`."""

    topic: str
    partitions: NDArray[np.int32]  # [forecasts]
    offsets: NDArray[np.int64]  # [forecasts]


class ForecastEncoder:
    """Writes the forecasts of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._layouts: dict[tuple[str, int, int], _Layout] = {}  # by how wide the forecasts and the scores are

    def encode(
        self, sources: Sources, ts: NDArray[np.int64], warm: NDArray[np.bool_], y: Float32, score: Float32
    ) -> list[bytes]:
        """The values of forecast records.

        Args:
            sources: the readings.
            ts: [forecasts] ms, of the readings.
            warm: [forecasts].
            y: [forecasts, horizon, targets, quantiles] (a classifier's: [forecasts, classes]), finite.
            score: [forecasts, diagnostics]; what is not finite is left out.
        """
        if self._spec.kind != "classifier":
            y = y.transpose(0, 2, 3, 1)  # as they stand in the text
        numbers = y[:1].size + score.shape[1]
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, numbers))
        values: list[bytes] = []
        for start in range(0, len(ts), at_once):
            part = slice(start, start + at_once)
            theirs = Sources(sources.topic, sources.partitions[part], sources.offsets[part])
            rows = self._rows(theirs, ts[part], warm[part], y[part], score[part])
            values += rows.tobytes().translate(None, b"\0").splitlines()
        return values

    def _rows(
        self, sources: Sources, ts: NDArray[np.int64], warm: NDArray[np.bool_], y: Float32, score: Float32
    ) -> Words:
        """[forecasts, words]"""
        n = len(ts)
        scored = np.isfinite(score)
        all_scored = bool(scored.all())
        y_words = float_words(y.reshape(-1))
        score_words = _NO_WORDS
        if score.size:  # not every model scores itself, and a small batch costs what its calls of numpy do
            score_words = float_words((score if all_scored else np.where(scored, score, np.float32(0))).ravel())
        kind = sources.topic, y_words.shape[1], score_words.shape[1]
        if kind not in self._layouts:
            self._layouts[kind] = _Layout.of(self._spec, *kind)
        layout = self._layouts[kind]
        rows = np.empty((n, len(layout.template)), dtype=np.uint32)
        rows[:] = layout.template
        rows[:, layout.ts] = whole_words(ts, TIME_WORDS)
        rows[:, layout.partition] = whole_words(sources.partitions, PARTITION_WORDS)
        rows[:, layout.offset] = whole_words(sources.offsets, OFFSET_WORDS)
        rows[:, layout.y] = y_words.reshape(n, -1)
        if score.size:
            rows[:, layout.score] = score_words.reshape(n, -1)
        if not warm.all():
            rows[:, layout.warm] = np.where(warm[:, np.newaxis], rows[:1, layout.warm], _words(b"false"))
        if not all_scored:
            begun = np.logical_or.accumulate(scored, axis=1)
            parted = np.concatenate((scored[:, :1], scored[:, 1:] & begun[:, :-1]), axis=1)
            rows[:, layout.optional] *= np.concatenate((scored, parted), axis=1)[:, layout.owners]
        return rows


@dataclass(slots=True)
class _Layout:
    """The words of a forecast: which are always the same, and where the others stand."""

    template: Words  # [words]
    ts: Columns  # [TIME_WORDS]
    warm: Columns  # [2]
    partition: Columns  # [PARTITION_WORDS] of the reading
    offset: Columns  # [OFFSET_WORDS]
    y: Columns  # [numbers * words of each]
    score: Columns  # [diagnostics * words of each]
    optional: Columns  # [n] all words of the scores
    owners: Columns  # [n] the diagnostic that each belongs to, or, of a comma before it, so many more

    @classmethod
    def of(cls, spec: ModelSpec, topic: str, y_width: int, score_width: int) -> _Layout:
        """The layout for readings of a topic and numbers of so many words."""
        text = _Text()
        text.add(b'{"ts":')
        ts = text.leave(TIME_WORDS)
        text.add(b',"step_ms":%d,"model":%b,"warm":' % (spec.step_ms, _json(spec.id)))
        warm = text.add(b"true\0")
        text.add(b',"source":' + _json(topic)[:-1] + b"-")
        partition = text.leave(PARTITION_WORDS)
        text.add(b"-")
        offset = text.leave(OFFSET_WORDS)
        text.add(b'"')
        y = []
        for before, count in _numbers(spec):
            text.add(before)
            for i in range(count):
                text.add(b"," if i else b"")
                y.append(text.leave(y_width))
        text.add(b']}},"score":{' if spec.kind != "classifier" else b'},"score":{')
        score, optional, owners = [_NONE], [_NONE], [_NONE]
        for i, diagnostic in enumerate(spec.diagnostics):
            comma = text.add(b"," if i else b"")
            name = text.add(_json(diagnostic.name) + b":")
            score.append(text.leave(score_width))
            optional += [name, score[-1], comma]
            owners += [np.full(len(name) + score_width, i), np.full(len(comma), len(spec.diagnostics) + i)]
        text.add(b"}}\n")
        return cls(text.template(), ts, warm, partition, offset, *map(np.concatenate, (y, score, optional, owners)))


def _numbers(spec: ModelSpec) -> list[tuple[bytes, int]]:
    """The text before each run of numbers, and how many there are."""
    if spec.kind == "classifier":
        names = [_json(name) + b":" for name in spec.classes]
        return [((b"," if i else b',"classes":{') + name, 1) for i, name in enumerate(names)]
    found = []
    for i, target in enumerate(spec.targets):
        before = (b"]}," if i else b',"targets":{') + _json(target) + b":{"
        for j, quantile in enumerate(spec.quantiles):
            found.append(((b"]," if j else before) + _json(quantile_name(quantile)) + b":[", spec.horizon))
    return found


class _Text:
    """A row of words that grows at its end."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, text: bytes) -> Columns:
        """Append a text of whole words; returns where it stands."""
        begin = len(self._bytes) // 4
        self._bytes += _words(text).tobytes()
        return np.arange(begin, len(self._bytes) // 4)

    def leave(self, words: int) -> Columns:
        """Append words to be written later; returns where they stand."""
        return self.add(bytes(4 * words))

    def template(self) -> Words:
        """All of them."""
        return np.frombuffer(self._bytes, dtype=np.uint32)


def _words(text: bytes) -> Words:
    return np.frombuffer(text + bytes(-len(text) % 4), dtype=np.uint32)
