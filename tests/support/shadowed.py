"""What several models make of the same readings, each worked out alone, one step after the other."""

import json
import math

from tests.support.models import OFFSETS, STEP_MS, SUCCESSORS, CountingReference
from tidecast.service.state.codec import Codec
from tidecast.service.state.offset_metadata import Committed

NAMES = ("value", "wind")
OLD, SAME_LAYOUT, NEW_LAYOUT = SUCCESSORS[:3]
STEPS = ("begin", "produce forecasts", "produce tidecast-state", "commit_transaction")


class Alone:
    """One model over what was sent, from its `first` step of each series on.

    Args:
        model: loaded.
        variant: what it counts.
        first: step -> readings before it were not shown to this model.
    """

    def __init__(self, model, variant, first=0):
        self.model, self.variant, self.first = model, variant, first
        self.answers = {}  # (key, ts) -> (median of each lead, warm)
        self.series = {}

    def run(self, sent):
        last, steps = {}, {}
        for _, key, value in sent:
            if value == b"{":
                continue
            reading = json.loads(value)
            steps[key] = steps.get(key, -1) + 1
            gap = range(last.get(key, reading["ts"]) + STEP_MS, reading["ts"], STEP_MS)
            last[key] = reading["ts"]
            if steps[key] < self.first:
                continue
            one = self.series.setdefault(key, CountingReference(self.variant))
            names = self.model.spec.features
            for missing in gap if steps[key] > self.first else ():
                one.step([math.nan] * len(names), missing)
            one.step([reading.get(name, math.nan) for name in names], reading["ts"])
            p50 = [row[1] for row in (OFFSETS[: self.model.spec.horizon] + (one.hash + 3 * one.count)).tolist()]
            self.answers[key, reading["ts"]] = p50, one.count >= self.model.spec.warmup_steps
        return self


def judge(world, *alone):
    """One forecast for each reading, that of the model which it names; returns the ids by partition, in order."""
    by_id = {one.model.spec.id: one.run(world.sent) for one in alone}
    told, found = {0: [], 1: []}, []
    for partition, key, forecast in world.forecasts():
        p50, warm = by_id[forecast["model"]].answers[key, forecast["ts"]]
        assert (forecast["targets"]["value"]["p50"], forecast["warm"]) == (p50, warm), forecast
        told[partition].append(forecast["model"])
        found.append((key, forecast["ts"]))
    wanted = [(key, json.loads(value)["ts"]) for _, key, value in world.sent if value != b"{"]
    assert sorted(found) == sorted(wanted), "one forecast for each reading"
    return told


def states(world, *models):
    """Of each series, by the changelog: of each of these models its state, and its steps."""
    by_hash = sorted(models, key=lambda model: model.spec.hash)
    codec, found = Codec(*(model.spec for model in by_hash)), {}
    for _, key, value, _ in world.read("tidecast-state"):
        found[key] = value
    told = {}
    for key, value in found.items():
        state, layout = codec.decode(value).state, codec.states
        told[key] = {
            model.spec.id: (state[layout.slices[nth]].tolist(), int(state[layout.steps_at[nth]]))
            for nth, model in enumerate(by_hash)
        }
    return told


def expected(*alone):
    """The same, of each model alone."""
    return {
        key: {one.model.spec.id: (one.series[key].state, one.series[key].count) for one in alone}
        for key in alone[0].series
    }


def committed(world):
    """partition -> what the group has committed."""
    found = world.broker.commits["tidecast", "readings"]
    return {p: Committed.parse(*known) for p, known in found.items()}


def changed(told):
    """partition -> the ids in order, each once for a run of them."""
    return {p: [name for n, name in enumerate(ids) if n == 0 or ids[n - 1] != name] for p, ids in told.items()}


class Decides:
    """A policy that names a model after so many answers of `champion`; `first`: number of the first decision."""

    def __init__(self, *decisions, first=0):
        self.decisions, self.asked, self.said = list(decisions), 0, None
        self.scored, self.took, self.number = [], [], first - 1

    def committed(self, batches):
        self.scored += batches

    def champion(self, assigned):
        self.asked += 1
        while self.decisions and self.decisions[0][0] <= self.asked:
            self.number += 1
            self.said = self.decisions.pop(0)[1], self.number
        return self.said

    def took_over(self, model_id, was, offsets):
        self.took.append((model_id, dict(was), dict(offsets)))
