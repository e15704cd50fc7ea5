"""Answers and states as several counting models would leave them in the topics: made up, for the verifier's tests."""

import copy
import json
from dataclasses import dataclass

import numpy as np

from tests.chaos.topics import Names
from tests.chaos.verifier import verify
from tests.support.models import SUCCESSORS, CountingReference
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.state.codec import Codec

NAMES = Names("readings", "forecasts", "dead", "changelog")
OLD, NEW, LONGER = 0, 1, 2  # NEW has the layout of OLD, LONGER another one


@dataclass(frozen=True)
class Take:
    """From the reading `at` on `model` answers; it steps from `first` on, from the state after the reading `source`.

    `source` None = the model's initial state. In good order, `source` is `first` - 1.
    """

    at: int
    model: int
    first: int
    source: int | None = None


def carried(at, model, back=0):
    return Take(at, model, at - back, at - back - 1)


def rebuilt(at, model, over):
    return Take(at, model, at - over)


def play(one, takes, models):
    """What the models would answer, and the changelog record after each of these readings.

    Returns:
        forecasts: a dict for each reading.
        records: (take, reading) -> changelog record, of silent steps too.
    """
    forecasts, records, shown = [], {}, {}
    for nth, take in enumerate(takes):
        model = models[take.model]
        if take.source is None:
            series, begun = CountingReference(SUCCESSORS[take.model]), take.first
        else:
            before, begun = shown[take.source]
            series = copy.copy(before)
            series.variant = SUCCESSORS[take.model]
        end = takes[nth + 1].at if nth + 1 < len(takes) else len(one.ts)
        for i in range(take.first, end):
            earlier, ts = series.count, one.ts[i]
            p10, p50, p90 = zip(*series.step(one.x[i], ts), strict=True)
            steps = i + 1 - begun
            columns = [np.array([v], np.int64) for v in (one.offsets[i], ts, steps, ts)]
            state = np.array([series.state], np.float32)
            records[nth, i] = Codec(model.spec).encode(*columns, state)[0]
            if i < take.at:
                continue
            shown[i] = copy.copy(series), begun
            forecasts.append(
                {
                    "ts": ts,
                    "step_ms": model.spec.step_ms,
                    "model": model.spec.id,
                    "warm": steps >= model.spec.warmup_steps,
                    "targets": {"value": {"p10": p10, "p50": p50, "p90": p90}},
                    "score": {"missing": series.missing} | ({"earlier": earlier} if earlier else {}),
                }
            )
    return forecasts, records


def judged(topics, models, takes, spoil=None, written=None):
    """The report on all series answered by these takes.

    Args:
        topics: `broker`, and the `readings` that are in it.
        models: the first of SUCCESSORS.
        takes: one for each model, or a function of the series that gives them.
        spoil: is given the forecasts of the first series, to change them.
        written: is given the first series and its records (see `play`), and gives those that are in the changelog, in
            order [the last one].
    """
    forecasts, states = OutgoingBatch(NAMES.forecasts), OutgoingBatch(NAMES.changelog)
    for nth, one in enumerate(topics.readings.series.values()):
        own = [Take(0, OLD, 0), *(takes(one) if callable(takes) else takes)]
        answers, records = play(one, own, models)
        sources = [f"{NAMES.readings}-{one.partition}-{offset}" for offset in one.offsets]
        rows = list(zip(sources, answers, strict=True))
        if spoil and not nth:
            spoil(rows)
        for source, answer in rows:
            told = json.dumps(answer | {"source": source}).encode()
            forecasts.append(one.key, told, partition=one.partition)
        for record in written(one, records) if written and not nth else [last_of(one, records)]:
            states.append(one.key, record, partition=one.partition)
    topics.broker.producer().produce(forecasts)
    topics.broker.producer().produce(states)
    return verify(topics.broker, models, NAMES, rtol=0, atol=0)


def last_of(one, records):
    return records[max(nth for nth, _ in records), len(one.ts) - 1]
