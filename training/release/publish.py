"""The check before a model is served: a candidate is compared with the current model, and replaces it if it passes.

Both are run as they are served, over the same file, and measured on rows that neither was fitted or chosen by: those
after the later `validate_until` of the two. Forecasts are compared by CRPS, which weighs the whole spread, as a mean
over the leads; one ratio for each target, and of these the geometric mean.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidecast.service.errors import ModelError, UsageError
from tidecast.service.model.compatibility import check_successor
from tidecast.service.model.model_file import MODEL_FILE
from tidecast.service.model.session import Model
from tidecast.service.timestamps import format_time
from tidecast.training.config import Config, read_config, write_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.evaluation.evaluate import MODEL, Evaluation, evaluate, tracks
from tidecast.training.evaluation.metrics import mean
from tidecast.training.release.compare import different_task

_WITH_THE_MODEL = ("metrics.json", "MODEL_CARD.md")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a candidate compares with the current model.

    Attributes:
        ratios: target -> the candidate's mean CRPS over that of the current model; below 1 = better.
        rows: readings that both were scored on.
        since: where these begin, ms.
    """

    ratios: dict[str, float]
    rows: int
    since: int

    @property
    def ratio(self) -> float:
        """The geometric mean over the targets."""
        return math.exp(sum(math.log(r) for r in self.ratios.values()) / len(self.ratios))

    def __str__(self) -> str:
        each = ", ".join(f"{target} {ratio:.3f}" for target, ratio in self.ratios.items())
        return f"{self.ratio:.3f} of its error ({each}) on {self.rows:,} readings since {format_time(self.since)}"


def judge(candidate: Path, in_force: Path, data: Path) -> Verdict:
    """Measure both model directories on `data`.

    Raises:
        TidecastError: a directory or the data cannot be used, no row is new to both, or they do not forecast the same.
    """
    configs = [read_config(directory / "config.toml") for directory in (candidate, in_force)]
    if difference := different_task(*configs):
        raise UsageError(
            f"the candidate cannot be compared with the model in force: {difference[0]}",
            got=difference[1],
            do="Publish it to another directory, and serve it with another --group.",
        )
    since = max(config.validate_until_ms for config in configs)
    found = [_measured(d, c, data, since) for d, c in zip((candidate, in_force), configs, strict=True)]
    errors = [{t: float(mean(methods[MODEL].crps)) for t, methods in each.scores.items()} for each in found]
    ratios = {target: max(errors[0][target], 1e-12) / max(errors[1][target], 1e-12) for target in errors[0]}
    return Verdict({t: r if math.isfinite(r) else math.inf for t, r in ratios.items()}, found[0].rows, since)


def _measured(directory: Path, config: Config, data: Path, since: int) -> Evaluation:
    moved = msgspec.structs.replace(config.data, validate_until=format_time(since))
    config = msgspec.structs.replace(config, data=moved)
    model, dataset = Model.load(directory), load_dataset(config, data)
    return evaluate(tracks(model.step, model.initial_state, config, dataset), config, dataset, baselines=False)


def publish(candidate: Path, place: Path, *, data: Path | None, tolerance: float) -> str:
    """Put the candidate into `place` if it may replace the model there; returns what was decided, in one line.

    The model file comes last and by a rename, so that a worker never sees half of one; until then the one in force is
    served.

    Raises:
        ModelError: it is worse than the model in force by more than `tolerance`, or a worker would refuse it.
        TidecastError: something cannot be read or written.
    """
    spec = Model.load(candidate).spec
    data = data if data is not None else _data_of(candidate)
    said = f"{spec.id} is published in {place}: "
    if (place / MODEL_FILE).exists():
        older = Model.load(place).spec
        if older.id == spec.id:
            return f"{spec.id} is in force already"
        check_successor(older, spec)
        verdict = judge(candidate, place, data)
        if not verdict.ratio <= 1 + tolerance:
            raise ModelError(
                f"{spec.id} is not published: it has {verdict}",
                got=f"{verdict.ratio:.3f}, at most {1 + tolerance:g} is allowed",
                do=f"{older.id} stays in force. Look at both with `tidecast evaluate --compare {candidate} {place}`.",
            )
        said += f"it follows {older.id}, with {verdict}"
    else:
        said += "there was none before"
    _put(candidate, place, data)
    return said


def _data_of(candidate: Path) -> Path:
    path = read_config(candidate / "config.toml").data.path
    if path is None:
        raise UsageError("the candidate's config has no data.path", do="Give the file with --data FILE.")
    return candidate / path


def _put(candidate: Path, place: Path, data: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_config(read_config(candidate / "config.toml"), data, place)
        for name in _WITH_THE_MODEL:
            if (candidate / name).exists():
                shutil.copyfile(candidate / name, place / name)
        if (candidate / "plots").is_dir():
            shutil.copytree(candidate / "plots", place / "plots", dirs_exist_ok=True)
        written = place / f"{MODEL_FILE}.new"
        with (candidate / MODEL_FILE).open("rb") as source, written.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        written.replace(place / MODEL_FILE)
    except OSError as error:
        raise UsageError(f"cannot write into {place}: {error.strerror or error}", do="Name another place.") from None
