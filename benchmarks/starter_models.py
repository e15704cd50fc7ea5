"""The models of `benchmarks/starter.py`: made and replayed by the command line, timed in the worker's pipeline."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import typing
from pathlib import Path
from time import process_time

import engine as engine_bench
import msgspec
import numpy as np
from reading_batches import batches
from starter_sets import Floats, Series, training_config, write_csv

from tidecast.service.broker.port import Batch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline
from tidecast.service.pipeline.policy import Policy
from tidecast.training.config import ModelConfig

TIDECAST = Path(sys.executable).with_name("tidecast")
MANY, BATCH, STEPS = 1_000, 5_000, 60  # series, readings of a batch, steps of each series: what a model is timed on


class Points(msgspec.Struct):
    """The medians of one target."""

    p50: list[float]


class Line(msgspec.Struct):
    """A line of `tidecast replay`."""

    series: str
    ts: int
    targets: dict[str, Points]


def tidecast(*words: str | Path) -> None:
    """Run a command. Its report goes to a file; only where it fails it is shown."""
    done = subprocess.run([TIDECAST, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tidecast {' '.join(map(str, words))}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def adaptations() -> tuple[str | None, str | None]:
    """(the config's line for a model that stays as it was trained, for one that learns online); None = cannot."""
    field = next((f for f in msgspec.structs.fields(ModelConfig) if f.name == "adapt"), None)
    if field is None:
        return "", None
    frozen = next((c for c in typing.get_args(field.type) if c not in ("online", "auto")), None)
    return (f'adapt = "{frozen}"' if frozen else None), 'adapt = "online"'


def trained(s: Series, folder: Path, more: str) -> Path:
    """The model of that config, trained with seed 0 unless it is there already."""
    text = training_config(s, more)
    out = folder / "models" / f"{s.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not (out / "model.onnx").exists():
        out.mkdir(parents=True, exist_ok=True)
        (out / "train.toml").write_text(text)
        write_csv(s, folder / f"{s.name}.csv")
        print(f"training {s.name} {more}", file=sys.stderr, flush=True)
        tidecast("train", out / "train.toml", "--data", folder / f"{s.name}.csv", "--out", out, "--quiet")
    return out


def has_starter() -> bool:
    """Whether this tidecast has the command."""
    return subprocess.run([TIDECAST, "starter", "--help"], capture_output=True).returncode == 0


def engine(horizons: tuple[int, ...], series: int, readings: int) -> list[list[str]]:
    """A row for each horizon: readings/s as benchmarks/engine.py measures them, its stages, and floats of state."""
    with tempfile.TemporaryDirectory() as folder:
        models = {
            f"starter-{horizon}": Model.load(make_starter(Path(folder) / str(horizon), "1h", horizon, ["value"]))
            for horizon in horizons
        }
    found = engine_bench.measure(models, readings, series, BATCH, 3)
    return [
        [name, f"{1e6 / us['total']:,.0f}", f"{models[name].spec.state_size:,}",
         *(f"{us.get(stage, 0.0):.2f}" for stage in engine_bench.COLUMNS)]
        for name, us in found.items()
    ]  # fmt: skip


ENGINE_HEAD = ["", "readings/s", "floats of state", *(f"{stage}, µs" for stage in engine_bench.COLUMNS)]


def make_starter(folder: Path, step: str, horizon: int, targets: list[str], key: str | None = None) -> Path:
    """`tidecast starter`, for files as `write_csv` writes them; returns the folder."""
    more = ["--series", key] if key else []
    tidecast("starter", "--step", step, "--target", ",".join(targets), "--horizon", str(horizon),
             "--time", "time", *more, "--out", folder)  # fmt: skip
    return folder


def starter(s: Series, folder: Path) -> Path:
    """The starter of that set: made anew each time, as it takes a moment."""
    targets, key = (s.names, None) if s.wide else (["value"], "series")
    return make_starter(folder / "models" / f"{s.name}-starter", s.step, s.horizon, targets, key)


def forecasts(s: Series, model: Path, folder: Path) -> Floats:
    """[series, steps, horizon] medians of `tidecast replay` at every step, NaN where there is none."""
    digest = hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()[:12]
    kept = folder / f"{s.name}.{digest}.npz"
    if kept.exists():
        with np.load(kept) as file:
            return file["forecast"]
    data, lines = folder / f"{s.name}.csv", folder / f"{s.name}.jsonl"
    write_csv(s, data)
    tidecast("replay", "--model", model, "--data", data, "--out", lines)
    out = np.full((*s.values.shape, s.horizon), np.nan, dtype=np.float32)
    number = {name: k for k, name in enumerate(s.names)}
    decode = msgspec.json.Decoder(Line).decode
    with lines.open("rb") as file:
        for text in file:
            line = decode(text)
            at = (line.ts - s.start_ms) // s.step_ms
            for target, found in line.targets.items():
                out[number[target if s.wide else line.series], at] = found.p50
    lines.unlink()
    np.savez(kept, forecast=out)
    return out


def backlog(s: Series, features: list[str], steps: int) -> list[Batch]:
    """The set's newest steps as readings of many series, one series after the other."""
    newest = s.values[:, -steps:]
    start = s.start_ms + (s.values.shape[1] - steps) * s.step_ms
    encode = msgspec.json.encode

    def value(k: int, i: int) -> bytes:
        return encode({"ts": start + i * s.step_ms} | {
            name: float(newest[(k + f) % len(newest), i]) for f, name in enumerate(features)
        })  # fmt: skip

    records = ((0, b"series-%d" % k, value(k, i)) for i in range(steps) for k in range(MANY))
    return list(batches(records, BATCH, start + 10**11, [0]))


def cost(s: Series, folder: Path) -> tuple[float, int]:
    """(CPU seconds for a million values, bytes in to bytes out, many series in a batch; bytes of state for a value)."""
    model = Model.load(folder)
    targets = len(model.spec.targets)
    pipeline = Pipeline(model, Policy(), output_topic="forecasts", dead_letter_topic="dead-letters")
    todo = backlog(s, model.spec.features, STEPS)
    warm = len(todo) // 4
    took, readings = 0.0, 0
    for number, batch in enumerate(todo):
        began = process_time()
        result = pipeline.process(batch)
        if number >= warm:
            took += process_time() - began
            readings += len(batch)
        if len(result.forecasts) != len(batch):
            raise SystemExit(f"{s.name}: {len(batch)} readings, {len(result.forecasts)} forecasts")
    return took / readings / targets * 1e6, 4 * model.spec.state_size // targets
