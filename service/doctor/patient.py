"""What all checks look at, asked once, and the forms of what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from tidecast.service.broker.port import Batch, Broker
from tidecast.service.broker.sample import Sample, newest
from tidecast.service.config.settings import Settings
from tidecast.service.input.canonical import DecodedReadings, ReadingDecoder
from tidecast.service.input.config import InputConfig
from tidecast.service.input.mapping import InputMapper, MappedBatch
from tidecast.service.pipeline.batch import BatchResult
from tidecast.service.worker.served_model import ServedModel

if TYPE_CHECKING:
    from tidecast.service.broker.kafka_python.questions import BatchFacts, Cluster, GroupFacts, Questions, TopicFacts

# What `serve` needs; docs/security.md has the same, with the names of Kafka's tools. A test compares them.
TOPIC_RIGHTS = {
    "input_topic": ("READ",),
    "output_topic": ("WRITE",),
    "dead_letter_topic": ("WRITE",),
    "changelog_topic": ("READ", "WRITE", "DESCRIBE_CONFIGS"),
}
GROUP_RIGHTS = ("READ",)
NO_MODEL = "no --model"


class State(StrEnum):
    """What a check found; the word that its line begins with."""

    OK = "ok"
    NOTE = "note"  # works, and may surprise
    WRONG = "wrong"
    NOT_CHECKED = "not checked"


class NotChecked(Exception):
    """The check cannot be made; the text says why."""


Said = Iterator[tuple[State, str]]
Check = Callable[["Patient"], Said]


@dataclass
class Patient:
    """A cluster, its topics and perhaps a model. Each property raises BrokerError where Kafka does not answer."""

    settings: Settings
    broker: Broker  # with the client library of the worker
    questions: Questions
    load_model: Callable[[], ServedModel] | None  # None = no --model was given
    input_config: InputConfig | None = None  # of --input

    @cached_property
    def cluster(self) -> Cluster:
        """Version and size."""
        return self.questions.cluster()

    @property
    def topic_rights(self) -> dict[str, tuple[str, ...]]:
        """What this worker needs: with shadows, also the decisions."""
        s = self.settings
        return TOPIC_RIGHTS | ({"decisions_topic": ("READ", "WRITE")[: 1 + (s.promote == "auto")]} if s.decides else {})

    @cached_property
    def topics(self) -> dict[str, TopicFacts]:
        """By the name of the setting."""
        names = {role: getattr(self.settings, role) for role in self.topic_rights}
        found = self.questions.topics(names.values())
        return {role: found[name] for role, name in names.items()}

    @cached_property
    def group(self) -> GroupFacts:
        """Of the settings' group."""
        return self.questions.group(self.settings.group)

    def missing_rights(self, role: str) -> tuple[str, ...]:
        """The operations on a topic that `serve` needs and this user does not have."""
        allowed = self.topics[role].operations
        return () if allowed is None else tuple(each for each in self.topic_rights[role] if each not in allowed)

    def require_input(self) -> None:
        """Raises NotChecked if the input cannot be read."""
        topic, facts = self.settings.input_topic, self.topics["input_topic"]
        if self.missing_rights("input_topic"):
            raise NotChecked(f"no right to read {topic}")
        if not facts.there:
            raise NotChecked(f"there is no topic {topic}")

    @cached_property
    def sample(self) -> Sample:
        """The newest records of the input.

        Raises:
            NotChecked: there are none, or the right to read them is missing.
        """
        self.require_input()
        found = newest(self.broker, self.settings.input_topic, self.settings.broker_timeout_seconds)
        if not len(found.batch):
            raise NotChecked(f"{self.settings.input_topic} holds no record")
        return found

    @cached_property
    def stored(self) -> BatchFacts:
        """How the newest records were written; raises as `sample`."""
        return self.questions.batches(self.sample.batch.topic, self.sample.starts)

    @cached_property
    def model(self) -> ServedModel:
        """The model.

        Raises:
            NotChecked: none is given.
            ModelError: it is refused.
        """
        if self.load_model is None:
            raise NotChecked(NO_MODEL)
        return self.load_model()

    @cached_property
    def mapped(self) -> MappedBatch:
        """The newest records as readings; raises as `sample` and `model`."""
        batch, features = self.sample.batch, tuple(self.model.spec.features)
        if self.input_config is None:
            return MappedBatch(batch, ReadingDecoder(features).decode(batch.values), features, batch)
        return map_records(batch, self.input_config, features)

    @property
    def decoded(self) -> DecodedReadings:
        """The columns of `mapped`."""
        return self.mapped.readings

    @cached_property
    def answers(self) -> BatchResult:
        """What the worker's pipeline makes of the newest records, each series beginning cold; raises as `decoded`."""
        sample, pipeline = self.sample, self.model.pipeline
        pipeline.prepare(sample.batch)
        return pipeline.process(sample.batch)


def map_records(batch: Batch, config: InputConfig, features: tuple[str, ...] | None) -> MappedBatch:
    """The readings of the records; `features` as for `InputMapper`.

    Raises:
        TidecastError: a schema cannot be read, or its registry does not answer.
    """
    mapper = InputMapper(config, features)
    mapper.prepare(batch)
    return mapper.map(batch)
