"""One model with the states that it has made."""

from __future__ import annotations

from collections.abc import Callable

from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec
from tidecast.service.pipeline.pipeline import Pipeline, Policy
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import RollingFlush
from tidecast.service.state.store import SeriesStore


class ServedModel:
    """A model, its pipeline, its states, and what writes these to the changelog."""

    def __init__(self, settings: Settings, model: Model, clock: Callable[[], float]) -> None:
        self.model = model
        self.codec = Codec(model.spec)
        self.pipeline = Pipeline(
            model,
            Policy.from_settings(settings),
            output_topic=settings.output_topic,
            dead_letter_topic=settings.dead_letter_topic,
        )
        self.rolling = RollingFlush(
            self.store,
            self.codec,
            topic=settings.changelog_topic,
            group=settings.group,
            seconds=settings.changelog_seconds,
            bytes_per_second=settings.changelog_bytes_per_second,
            clock=clock,
        )

    @property
    def spec(self) -> ModelSpec:
        """The model's description of itself."""
        return self.model.spec

    @property
    def store(self) -> SeriesStore:
        """The states."""
        return self.pipeline.store
