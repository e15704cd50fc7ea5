"""A group of models that step over the same readings: one of them answers, the champion; the others are shadows.

The state of a series in a group is described in `tidecast.service.model.members`: each member's own state, and the
steps that it has taken. A member whose state or forecast is not finite returns to its initial state, alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import ModelError
from tidecast.service.model.members import MOST_MEMBERS, StateLayout, in_order, member_of
from tidecast.service.model.numbers import all_finite, finite_rows
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

log = logging.getLogger("tidecast.model")


class ModelGroup:
    """Several models as one, or one model alone, which costs nothing more. Not for use from several threads at once.

    Args:
        models: the first is the one that was asked for; of others with its content, or each other's, one is kept.

    Attributes:
        members: in the order in which their states lie.
        asked: which of them was asked for.
        features: those of all members; the columns of `x`.
        columns: of each member, its features in there; None = all of them, in this order.
        score_width: columns of `score`: the diagnostics of each member, and the steps that each has taken, if there
            are several.

    Raises:
        ModelError: the models cannot run over the same readings.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        check_group([model.spec for model in models])
        own = list({model.spec.hash: model for model in reversed(models)}.values())
        self.members = tuple(own[nth] for nth in in_order([model.spec for model in own]))
        self.specs = tuple(model.spec for model in self.members)
        self.asked = self.specs.index(next(s for s in self.specs if s.hash == models[0].spec.hash))
        self.alone = len(self.members) == 1
        self.layout = StateLayout([member_of(spec) for spec in self.specs])
        self.initial_state = self.layout.initial_state(self.specs)
        self.step_ms = self.specs[0].step_ms
        features = tuple(dict.fromkeys(name for spec in self.specs for name in spec.features))
        self.features = models[0].spec.features if set(features) == set(models[0].spec.features) else features
        self.columns = [
            None if tuple(spec.features) == tuple(self.features) else [self.features.index(f) for f in spec.features]
            for spec in self.specs
        ]
        ends = np.cumsum([len(spec.diagnostics) for spec in self.specs]).tolist()
        self.scores = [slice(e - len(s.diagnostics), e) for e, s in zip(ends, self.specs, strict=True)]
        self.score_width: int = ends[-1] + (0 if self.alone else len(self.members))
        self._resets: Counter[str] = Counter()
        self._failed: set[str] = set()  # models of which a failed step was logged

    def index(self, model_id: str | None) -> int | None:
        """Which member has this id; None = none has."""
        return next((nth for nth, spec in enumerate(self.specs) if spec.id == model_id), None)

    def take_resets(self) -> dict[str, int]:
        """Model -> how many states of it as a shadow were reset, since this was last called."""
        resets, self._resets = dict(self._resets), Counter()
        return resets

    def step(self, champion: int, x: Float32, ts: Int64, state: Float32) -> tuple[Float32, Float32, Float32]:
        """One step of all members for a batch of series; the results of each are those of `Model.step`.

        Args:
            champion: the member that answers.
            x: [batch, features], raw units, NaN = missing.
            ts: [batch], ms.
            state: [batch, state].

        Returns:
            y of the champion, NaN in rows where its step failed; next_state [batch, state]; score [batch, score_width].

        Raises:
            ModelError: the runtime failed in the champion's step.
        """
        if self.alone:
            return self.members[0].step(x, ts, state)
        next_state, score = np.empty_like(state), np.empty((len(ts), self.score_width), dtype=np.float32)
        assert self.layout.steps_at is not None
        first_steps = self.score_width - len(self.members)
        for nth, at in enumerate(self.layout.steps_at.tolist()):
            part, columns = self.layout.slices[nth], self.columns[nth]
            own = x if columns is None else x[:, columns]
            steps, answers = state[:, at] + np.float32(1), nth == champion
            try:
                y, after, scored = self.members[nth].step(np.ascontiguousarray(own), ts, state[:, part].copy())
                finite = None if all_finite(after, y) else finite_rows(after) & finite_rows(y)
            except ModelError as error:
                if answers:
                    raise
                self._say_failed(nth, error)
                after = y = scored = np.zeros((len(ts), 1), dtype=np.float32)  # replaced in all rows
                finite = np.zeros(len(ts), dtype=np.bool_)
            if finite is not None and not finite.all():
                good = finite[:, np.newaxis]
                after, steps = np.where(good, after, self.initial_state[part]), steps * finite
                scored = np.where(good, scored, np.float32(np.nan))
                if answers:
                    y = np.where(finite.reshape(-1, *[1] * (y.ndim - 1)), y, np.float32(np.nan))
                else:
                    self._resets[self.specs[nth].id] += int(np.count_nonzero(~finite))
            next_state[:, part], next_state[:, at] = after, steps
            score[:, self.scores[nth]], score[:, first_steps + nth] = scored, steps
            if answers:
                answer = y
        return answer, next_state, score

    def warm(self, member: int, score: Float32) -> NDArray[np.bool_]:
        """[batch] whether a member of several has had its warm-up; `score` [batch, score_width]."""
        steps = score[:, self.score_width - len(self.members) + member]
        return np.asarray(steps >= min(self.specs[member].warmup_steps, 2**24))

    def _say_failed(self, nth: int, error: ModelError) -> None:
        name = self.specs[nth].id
        if name not in self._failed:
            self._failed.add(name)
            log.error(
                "a shadow fails in its steps; its states start again, and the champion answers as before",
                extra={"model": name, "reason": str(error), "in": "tidecast_shadow_resets_total"},
            )


def check_group(specs: Sequence[ModelSpec], only: Sequence[str] | None = None) -> None:
    """Check that models can run over the same readings.

    Args:
        specs: the first is the one that was asked for, the others are its shadows.
        only: the features that there are; None = any.

    Raises:
        ModelError: they have another kind or step, or there are too many.
    """
    first = specs[0]
    if len(specs) > MOST_MEMBERS:
        raise ModelError(f"at most {MOST_MEMBERS - 1} shadows may run", got=len(specs) - 1, do="Give fewer --shadow")
    for spec in specs[1:]:
        if spec.step_ms != first.step_ms:
            raise ModelError(
                f"the shadow {spec.id} has a step of {spec.step_ms} ms, and {first.id} one of {first.step_ms} ms",
                do="Models that run over the same readings need the same step: train it with that step, or serve it "
                "with a --group of its own",
            )
        if spec.kind != first.kind:
            raise ModelError(
                f"the shadow {spec.id} is a {spec.kind}, and {first.id} is a {first.kind}",
                do="Serve it with a --group of its own",
            )
        if only is not None and (more := [name for name in spec.features if name not in only]):
            raise ModelError(
                f"the shadow {spec.id} has features that {first.id} has not: {', '.join(more)}",
                do="With an [input] table, only the features of --model are read. Give that model as --model, and "
                "this one as --shadow; what is committed says which of them answers",
            )
