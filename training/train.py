"""The way from a config to a model directory, top to bottom."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tidecast.service.model.spec import ModelSpec
from tidecast.training.adapt import settle_adapt
from tidecast.training.config import Config, write_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.evaluation.evaluate import Evaluation, evaluate, tracks
from tidecast.training.export.export import build_graph, write
from tidecast.training.export.parity import check_parity, onnx_step
from tidecast.training.fit.loop import fit
from tidecast.training.fit.resolve_config import resolve_config
from tidecast.training.progress import Progress
from tidecast.training.report.plots import save_plots
from tidecast.training.report.tables import print_tables, write_card


def train(config: Config, data: Path, out: Path, *, quiet: bool = False) -> tuple[ModelSpec, Evaluation]:
    """Fit, export through the gate, evaluate what was exported, and leave a model directory in `out`.

    `model.onnx` is written last and at once, so that a worker that waits for it never sees half a model.

    Raises:
        TidecastError: the data cannot be used, or the export differs from the model; then no model is written.
    """
    with Progress(quiet=quiet) as progress:
        progress.stage(f"reading {data.name}")
        dataset = load_dataset(config, data)
        for sentence in dataset.rows:
            progress.say(f"{data.name}: {sentence}.")
        config = resolve_config(config, dataset)
        model, history = fit(config, dataset, progress)
        if history.interrupted:
            progress.say("Interrupted: keeping the best so far.")
        progress.stage("choosing whether it learns on while it is served")
        model, config, adapt = settle_adapt(model, config, dataset)
        if adapt is not None:
            progress.say(f"{adapt}.")
        progress.stage("exporting, and comparing onnxruntime with torch")
        graph = build_graph(model)
        parity = check_parity(model, graph.SerializeToString(), dataset)
        progress.stage("evaluating on the test rows")
        found = tracks(onnx_step(graph.SerializeToString()), model.initial_state().numpy(), config, dataset)
        evaluation = evaluate(found, config, dataset)
        progress.stage("writing the model directory")
        save_plots(out / "plots", config, found, evaluation, history)
        write_config(config, data, out)
        (out / "metrics.json").write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2))
        spec = write(graph, model, config, dataset, evaluation.summary(), out / "model.onnx")
        write_card(out, spec, config, dataset, history, evaluation, parity, model.units.limits().numpy(), adapt)
    print_tables(evaluation, config)
    print(f"{out}: {spec.id}, trained in {history.seconds:.0f} s. MODEL_CARD.md and plots/ explain it.")
    return spec, evaluation
