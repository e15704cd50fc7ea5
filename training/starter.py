"""The way to a model directory without any data: a forecaster that learns each series while it is served."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tomli_w

from tidecast.service.model.onnx_file import content_hash
from tidecast.service.model.spec import ModelSpec, TrainingData
from tidecast.service.timestamps import format_duration
from tidecast.training.config import DEFAULT_QUANTILES
from tidecast.training.export.export import SELF_TEST_STEPS, self_test, trace, write_model
from tidecast.training.export.parity import Floats, Parity, Times, check_parity_of, onnx_step
from tidecast.training.model.starter import Starter, StarterShape

START_MS = 1_767_225_600_000  # 2026-01-01: a Thursday
STEPS, BATCHES = 300, (1, 16)  # of the parity check
MISSING = 0.1


@dataclass(frozen=True, kw_only=True)
class StarterConfig:
    """What `tidecast starter` was asked for; `time` and `series` are the columns of files that it replays."""

    name: str = "starter"
    step_ms: int
    features: list[str]
    targets: list[str]
    horizon: int
    quantiles: list[float] = field(default_factory=lambda: list(DEFAULT_QUANTILES))
    time: str = "ts"
    series: str | None = None
    alarms_a_week: float = 0.0  # false alarms of the anomaly score, for each series; 0 = none

    @property
    def ordered(self) -> list[str]:
        """The features as the graph takes them: targets first."""
        return [*self.targets, *(name for name in self.features if name not in self.targets)]

    @property
    def command(self) -> str:
        """The command that makes it again, but for the directory."""
        flags = {
            "step": format_duration(self.step_ms), "features": ",".join(self.features),
            "target": ",".join(self.targets), "horizon": str(self.horizon),
            "quantiles": ",".join(f"{q:g}" for q in self.quantiles), "name": self.name, "time": self.time,
        }  # fmt: skip
        if self.series is not None:
            flags["series"] = self.series
        if self.alarms_a_week:
            flags["alarm-rate"] = f"{self.alarms_a_week:g}"
        return "tidecast starter " + " ".join(f"--{name} {shlex.quote(text)}" for name, text in flags.items())


def make_starter(config: StarterConfig, out: Path) -> ModelSpec:
    """Write the model directory; `model.onnx` last and at once.

    Raises:
        ModelError: the export differs from the model; then no model is written.
    """
    model = Starter(
        StarterShape(
            targets=config.targets, others=config.ordered[len(config.targets) :], step_ms=config.step_ms,
            horizon=config.horizon, quantiles=config.quantiles, alarms_a_week=config.alarms_a_week,
        )
    )  # fmt: skip
    model.eval()
    proto = trace(model, model.features, model.initial_state())
    graph = proto.SerializeToString()
    runtime, scale = onnx_step(graph), np.full((len(config.targets), 1), 10.0, np.float32)
    parity = [
        check_parity_of(model, None, runtime, *made_up(batch, STEPS, model.features, config.step_ms), scale)
        for batch in BATCHES
    ]
    spec = ModelSpec(
        name=config.name,
        hash=content_hash(graph),
        features=config.ordered,
        targets=config.targets,
        horizon=config.horizon,
        step_ms=config.step_ms,
        quantiles=config.quantiles,
        state_size=model.state_size,
        state=[part for part in model.slices if 0 not in part.shape],
        initial_state=model.initial_state().tolist(),
        warmup_steps=model.warmup,
        diagnostics=model.diagnostics,
        training_data=TrainingData(hashlib.sha256(b"").hexdigest(), 0, 0, 0),
        metrics={},
        self_test=self_test(model, *made_up(1, SELF_TEST_STEPS, model.features, config.step_ms)),
    )
    _write_config(config, out)
    write_model(proto, spec, out / "model.onnx")
    (out / "MODEL_CARD.md").write_text(_card(config, model, spec, parity), encoding="utf-8")
    return spec


def made_up(batch: int, steps: int, features: int, step_ms: int) -> tuple[Floats, Times]:
    """Readings with a day, a week, a drift and missing values: x [batch, steps, features], ts [batch, steps] ms."""
    generator = np.random.default_rng(7)
    ts = START_MS + np.arange(steps, dtype=np.int64) * step_ms
    turns = 2 * np.pi * ts / 86_400_000
    phase = generator.random((batch, 1, features)) * 6
    x = 100 + 10 * np.sin(turns[:, None] + phase) + 3 * np.sin(turns[:, None] / 7 + phase)
    x = x + np.cumsum(generator.normal(size=(batch, steps, features)), axis=1)
    x[generator.random(x.shape) < MISSING] = np.nan
    return x.astype(np.float32), np.tile(ts, (batch, 1))


def _write_config(config: StarterConfig, out: Path) -> None:
    """`config.toml`: the columns that it reads in files, and all that makes it again."""
    data = {"time": config.time, "targets": config.targets,
            "covariates": config.ordered[len(config.targets) :], "step": format_duration(config.step_ms)}  # fmt: skip
    if config.series is not None:
        data["series"] = config.series
    made = {"features": config.features, "horizon": config.horizon, "quantiles": config.quantiles}
    if config.alarms_a_week:
        made["alarm_rate"] = config.alarms_a_week
    table = {"name": config.name, "data": data, "starter": made}
    (out / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")


def _card(config: StarterConfig, model: Starter, spec: ModelSpec, parity: list[Parity]) -> str:
    """`MODEL_CARD.md`: what it is, what it remembers, and what it is not for."""
    step, ahead = format_duration(spec.step_ms), format_duration(spec.horizon * spec.step_ms)
    lines = [
        f"# {spec.name}",
        "",
        "A starter: a forecaster without training. It learns each series from its own readings, in its state, while it "
        f"is served, and forecasts {', '.join(spec.targets)} 1 to {spec.horizon} steps of {step} ahead ({ahead}) as "
        f"quantiles {', '.join(f'{q:g}' for q in spec.quantiles)}.",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{spec.id}` |",
        f"| features | {', '.join(spec.features)} (raw units; missing values are allowed) |",
        f"| trusted after | {spec.warmup_steps} steps of a series (`warm` in its forecasts) |",
        f"| state | {spec.state_size:,} numbers for each series |",
        f"| leads that it learns, the others lie between | {', '.join(map(str, model.mixture.grid))} |",
        "| training rows | none |",
        "",
        "It averages these forecasts by their running errors: persistence, the values a day and a week ago, running "
        "means by the time of day and of the week, a running mean, and a ridge regression on all of them that learns "
        "at each reading.",
        "",
        "## The export",
        "",
        "The file was written only after torch's and onnxruntime's folded steps agreed on made-up readings (largest "
        "relative difference, 10 % of the values missing):",
        "",
        "| batch | steps carried | torch to onnxruntime |",
        "|---|---|---|",
        *(f"| {p.batch} | {p.steps} | {p.fold_to_onnx:.1e} |" for p in parity),
        "",
        "## Limits",
        "",
        "Its first forecast is the first reading, with a width that is guessed from its size. A season is known after "
        "it was seen once. A series that starts again (after a longer gap) is learned again from nothing.",
        "",
        "This makes it again:",
        "",
        f"    {config.command} --out DIR",
        "",
    ]
    return "\n".join(lines)
