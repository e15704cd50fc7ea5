"""`tidecast tune`: search for a better config within a time limit, by validation rows alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tidecast.service.errors import TidecastError, UsageError
from tidecast.training.commands import folder
from tidecast.training.config import check, read_config

if TYPE_CHECKING:
    import optuna

    from tidecast.training.tune import Search

HELP = "search for a better config within a time limit, by the loss on validation rows; can be continued"
EXAMPLE = "tidecast tune training/samples/weather.toml --out build/tune --minutes 30"
SHOWN_TRIALS = 10
COLUMNS = (("rate", "fit.learning_rate"), ("decay", "fit.weight_decay"), ("dropout", "model.dropout"),
           ("history", "model.history"), ("window", "fit.window"), ("lanes", "fit.lanes"))  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="the training config to start from, a TOML file")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="keeps study.db and best.toml; give it again to continue"
    )
    parser.add_argument("--minutes", type=float, required=True, metavar="N", help="stop after so many minutes")
    parser.add_argument("--trials", type=int, metavar="N", help="stop after so many trials too")
    parser.add_argument("--data", metavar="FILE", help="CSV or Parquet, instead of the config's data.path")


def run(args: argparse.Namespace) -> int:
    """Search, write best.toml, and print the trials on stdout."""
    config = read_config(args.config)
    check(config)
    if not args.minutes > 0:
        raise UsageError("--minutes must be above 0", got=args.minutes, do="Give the time that the search may take.")
    if args.data is None and config.data.path is None:
        raise UsageError("the config has no data.path", do="Give the file with --data FILE.")
    data = Path(args.data) if args.data is not None else Path(args.config).parent / str(config.data.path)
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("tuning needs optuna", do="Run: pip install 'tidecast[tune]'") from None

    from tidecast.training.data.dataset import load_dataset
    from tidecast.training.tune import Search, search, without_test_rows, write_best

    out = Path(args.out)
    folder(out)
    whole = load_dataset(config, data)
    for sentence in whole.rows:
        print(f"{data}: {sentence}.", file=sys.stderr)
    dataset = without_test_rows(whole, config.validate_until_ms)
    wanted = Search(config, dataset, data, out, args.minutes, args.trials)
    study = search(wanted, lambda text: print(text, file=sys.stderr, flush=True))
    best = write_best(study, wanted)
    if best is None:
        raise TidecastError("no trial ended", do="Give it more --minutes, or fewer fit.epochs.")
    print_trials(study, wanted)
    print(f"{best}: train it with `tidecast train {best} --out DIR`.")
    return 0


def print_trials(study: optuna.Study, wanted: Search) -> None:
    """The best trials, and what the best one changed."""
    from tidecast.training.report.tables import grid, stdout_console
    from tidecast.training.tune import finished, own_values, shown

    own = own_values(wanted.config)
    done = finished(study)
    start = next((float(t.value or 0.0) for t in done if t.params == own), None)
    console = stdout_console()
    head = ["trial", "loss", "gain", "cell", *(column for column, _ in COLUMNS), "epochs", "seconds"]
    body = []
    for trial in done[:SHOWN_TRIALS]:
        loss, of, attrs = float(trial.value or 0.0), trial.params, trial.user_attrs
        gain = "config" if of == own else f"{100 * (1 - loss / start):+.1f} %" if start else ""
        cell = f"{of['model.cell']} {of['model.layers']}x{of['model.hidden']}"
        values = [shown(of[name]) for _, name in COLUMNS]
        took = [str(attrs.get(name, "")) for name in ("epochs", "seconds")]
        body.append([str(trial.number), f"{loss:.5f}", gain, cell, *values, *took])
    rest = len(study.trials) - len(done)
    title = f"{wanted.config.name}: {len(done)} trials that ended, {rest} stopped early, interrupted or failed"
    console.print(grid(title, head, body, "loss: CRPS on validation rows, in standard deviations of training rows"))
    changes = [(name, own[name], done[0].params[name]) for name in own if own[name] != done[0].params[name]]
    if not changes:
        print("Nothing was better than the config as it is.")
        return
    rows = [[name, shown(before), shown(after)] for name, before, after in changes]
    console.print(grid(f"what trial {done[0].number} changed", ["setting", "config", "best"], rows))
