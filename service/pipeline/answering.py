"""What the pipeline needs of the model that answers: how its readings are decoded, stepped, scored and written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tidecast.service.input.canonical import DecodedReadings, ReadingDecoder
from tidecast.service.model.group import ModelGroup
from tidecast.service.pipeline.batch import MemberScores
from tidecast.service.pipeline.encode import ForecastEncoder

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Answering:
    """One member of a group as the champion. `group`: all that step; `member`: the number of the one that answers.

    What this model would reject alone is rejected, and nothing else: of the features that only shadows have, what
    cannot be read is missing.
    """

    def __init__(self, group: ModelGroup, member: int) -> None:
        self.group, self.member, self.spec = group, member, group.specs[member]
        forecast = (self.spec.horizon, len(self.spec.targets), len(self.spec.quantiles))
        self.forecast_shape = (len(self.spec.classes),) if self.spec.kind == "classifier" else forecast
        self.encoder = ForecastEncoder(self.spec)
        self.columns = group.columns[member]
        self._decoder = ReadingDecoder(self.spec.features)
        self._others = [name for name in group.features if name not in self.spec.features]
        self._more = ReadingDecoder(self._others) if self._others else None

    def decode(self, values: Sequence[bytes | None]) -> DecodedReadings:
        """As `ReadingDecoder.decode`, with the features of the group."""
        readings = self._decoder.decode(values)
        if self.columns is None:
            return readings
        x = np.full((len(values), len(self.group.features)), np.nan, dtype=np.float32)
        x[:, self.columns] = readings.x
        if self._more is not None:
            more = self._more.decode(values)
            more.x[[*more.rejected, *readings.rejected]] = np.nan
            x[:, [self.group.features.index(name) for name in self._others]] = more.x
        readings.x = x
        return readings

    def step(self, x: Float32, ts: Int64, state: Float32) -> tuple[Float32, Float32, Float32]:
        """See `ModelGroup.step`."""
        return self.group.step(self.member, x, ts, state)

    def reset(self, finite: Mask, next_state: Float32) -> Float32:
        """[batch, state] where the rows that are not finite start again; the members of a group have done it."""
        if not self.group.alone:
            return next_state
        return np.where(finite[:, np.newaxis], next_state, self.group.initial_state)

    def warm(self, steps: Int64, score: Float32) -> Mask:
        """[batch] whether the champion has had its warm-up, given the series' steps and the scores [batch, ...]."""
        return steps >= self.spec.warmup_steps if self.group.alone else self.group.warm(self.member, score)

    def scores(self, score: Float32) -> Float32:
        """[batch, diagnostics] of the champion."""
        return score[:, self.group.scores[self.member]]

    def members(self, score: Float32) -> list[MemberScores]:
        """The scores of all members, the champion first; none where it is alone."""
        group = self.group
        if group.alone:
            return []
        order = sorted(range(len(group.members)), key=lambda nth: nth != self.member)
        return [MemberScores(group.specs[n], score[:, group.scores[n]], group.warm(n, score)) for n in order]
