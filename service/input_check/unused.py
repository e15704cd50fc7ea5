"""Numbers in the records that no feature uses."""

from __future__ import annotations

from collections.abc import Sequence

from tidecast.service.broker.port import Batch
from tidecast.service.input.config import InputConfig, key_paths
from tidecast.service.input.mapping import InputMapper
from tidecast.service.input.paths import Step, parse_paths
from tidecast.service.input_check.survey import survey


def unused_numbers(batch: Batch, config: InputConfig, features: Sequence[str]) -> list[str]:
    """Paths of numbers in the innermost items that are no feature, and neither time, key nor condition.

    Raises:
        TidecastError: a schema cannot be read, or its registry does not answer.
    """
    mapper = InputMapper(config, None)
    mapper.prepare(batch)
    texts = [config.time, config.name, config.value, *config.skip_if, *config.only_if, *key_paths(config.key)]
    parents: set[tuple[Step, ...]] = set()  # whose names are features, all of them or those of the model
    fields = config.feature_fields
    if fields is not None and not config.long:
        texts += [each.path for each in fields.values()]
    elif not config.long:
        parents = {path.steps for path in parse_paths(str(config.fields))} if config.fields else {()}
    used = {path.steps for text in texts if text for path in parse_paths(text)}
    return [
        leaf.path
        for leaf in survey(mapper.items(batch)).leaves
        if leaf.numeric
        and leaf.place not in used
        and not (leaf.place[:-1] in parents and leaf.place[-1:] and leaf.place[-1] in features)
    ]
