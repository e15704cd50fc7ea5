"""One model, or a group of models that step over the same readings, with the states that they have made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tidecast.service.config.settings import Settings
from tidecast.service.input.config import InputConfig
from tidecast.service.memory_limit import memory_limit
from tidecast.service.model.group import ModelGroup, check_group
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec
from tidecast.service.pipeline.pipeline import Pipeline, Policy
from tidecast.service.state.capacity import bytes_per_series
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import RollingFlush
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.state.store import SeriesStore, named_slices

log = logging.getLogger("tidecast.series")


class ServedModel:
    """A model with its shadows, their pipeline, their states, and what writes these to the changelog.

    Args:
        settings: what is in force.
        models: the one that was asked for, and its shadows.
        clock: seconds, monotonic.
        input_config: the [input] table.

    Raises:
        ModelError: the models cannot run over the same readings.
    """

    def __init__(
        self,
        settings: Settings,
        models: Sequence[Model],
        clock: Callable[[], float],
        input_config: InputConfig | None = None,
    ) -> None:
        if input_config is not None:
            check_group([model.spec for model in models], only=models[0].spec.features)
        self.group = ModelGroup(models)
        self.codec = Codec(*self.group.specs, heir=self.group.asked)
        self.pipeline = Pipeline(
            self.group,
            Policy.from_settings(settings, self.codec.state_size),
            output_topic=settings.output_topic,
            dead_letter_topic=settings.dead_letter_topic,
            input_config=input_config,
        )
        if settings.max_series == "auto":
            self._log_capacity()
        self.rolling = RollingFlush(
            self.store,
            self.codec,
            topic=settings.changelog_topic,
            group=settings.group,
            seconds=settings.changelog_seconds,
            bytes_per_second=settings.changelog_bytes_per_second,
            clock=clock,
        )

    def _log_capacity(self) -> None:
        limit, each = memory_limit(), bytes_per_series(self.codec.state_size)
        log.info(
            "at most so many series are kept in memory; --max-series sets another number",
            extra={
                "series": self.store.max_series,
                "mb": self.store.max_series * each >> 20,
                "limit_mb": limit.bytes >> 20,
                "limit": limit.whose,
                "bytes_per_series": each,
            },
        )

    @property
    def spec(self) -> ModelSpec:
        """The description of the model that was asked for."""
        return self.group.specs[self.group.asked]

    @property
    def shadows(self) -> list[Model]:
        """All other models, in the order of their states."""
        return [model for nth, model in enumerate(self.group.members) if nth != self.group.asked]

    @property
    def store(self) -> SeriesStore:
        """The states."""
        return self.pipeline.store

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of all members, as in their ids; none where the model has no shadows."""
        return () if self.group.alone else tuple(member.hash for member in self.codec.members)

    def made(self, committed: Committed | None) -> int | None:
        """The member that has answered what is committed; None = none of these."""
        return None if committed is None else self.group.index(committed.model)

    def codec_for(self, committed: Committed | None) -> Codec:
        """Reads the states of a partition."""
        if committed is None or committed.model is None:
            return self.codec
        return self.codec.made_by(committed.maker, committed.model.rpartition("@")[2])

    def describe(self, key: bytes, champion: int) -> dict[str, Any]:
        """What a group remembers of a series, by model: role, steps, warm or not, the state by its named slices."""
        state, layout = self.store.state_of(key), self.codec.states
        if state is None or layout.steps_at is None:
            return {}
        found: dict[str, Any] = {}
        for nth, (spec, at) in enumerate(zip(self.group.specs, layout.steps_at.tolist(), strict=True)):
            steps = int(state[at])
            found[spec.id] = {
                "role": "champion" if nth == champion else "shadow",
                "steps": steps,
                "warm": steps >= spec.warmup_steps,
                "state": named_slices(np.ascontiguousarray(state[layout.slices[nth]]), spec.state),
            }
        return found
