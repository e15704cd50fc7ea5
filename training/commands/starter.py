"""`tidecast starter`: a forecaster without training."""

from __future__ import annotations

import argparse
import re

from tidecast.service.errors import UsageError
from tidecast.service.timestamps import parse_duration_ms
from tidecast.training.commands import folder
from tidecast.training.config import DEFAULT_QUANTILES

HELP = """\
write a forecaster that needs no training: it learns each series while it is served

It needs no data. From the first reading of a series on it forecasts, and gets better as it sees more. Serve it as any
model, and replace it by a trained one when there is history enough."""
EXAMPLE = """\
tidecast starter --step 1h --features temperature,pressure --target temperature --horizon 24h --out build/starter
tidecast serve --model build/starter"""

LONGEST_HORIZON = 1_000  # steps
MOST_ALARMS = 1_000  # a week


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--step", required=True, metavar="TIME", help="from a reading to the next: 5min, 1h, 1d")
    add("--features", metavar="NAMES", help="what its readings contain, with commas [the targets]")
    add("--target", required=True, metavar="NAMES", help="which of them are forecast, with commas")
    add("--horizon", default="1", metavar="TIME", help="how far ahead: steps (24), or a time (12h) [1]")
    add("--quantiles", default=",".join(f"{q:g}" for q in DEFAULT_QUANTILES), metavar="Q",
        help="which are forecast, with commas [%(default)s]")  # fmt: skip
    add("--alarm-rate", type=float, default=0.0, metavar="N",
        help="add an anomaly score with about N false alarms a week of each series, or fewer [0: none]")  # fmt: skip
    add("--name", default="starter", metavar="NAME", help="the model's name [starter]")
    add("--time", default="ts", metavar="COLUMN", help="of files that it replays: the column of times [ts]")
    add("--series", metavar="COLUMN", help="of files that it replays: the column that names the series")
    add("--out", required=True, metavar="DIR", help="the model directory to write")


def run(args: argparse.Namespace) -> int:
    """Make it, and say how to serve it."""
    step_ms = parse_duration_ms(args.step)
    if step_ms <= 0:
        raise UsageError("--step must be above 0: a starter counts time in steps", got=args.step,
                         do='Give the usual time between two readings of a series, such as "5min".')  # fmt: skip
    targets = _names("--target", args.target)
    features = _names("--features", args.features) if args.features else targets
    if absent := [name for name in targets if name not in features]:
        raise UsageError(f"--target names what is not in --features: {', '.join(absent)}",
                         do=f"The features are {', '.join(features)}.")  # fmt: skip
    horizon = _steps(args.horizon, args.step, step_ms)
    quantiles = _quantiles(args.quantiles)
    if not 1 <= len(args.name.strip()) <= 200:
        raise UsageError("--name must have 1 to 200 characters", got=args.name, do="Give another one.")
    if not 0 <= args.alarm_rate <= MOST_ALARMS:
        raise UsageError(f"--alarm-rate must be 0 to {MOST_ALARMS:,} alarms a week", got=str(args.alarm_rate),
                         do="Give 1 for one false alarm a week of each series, or 0 for no anomaly score.")  # fmt: skip
    out = folder(args.out)

    from tidecast.training.starter import StarterConfig, make_starter  # torch takes seconds to import

    spec = make_starter(
        StarterConfig(
            name=args.name.strip(), step_ms=step_ms, features=features, targets=targets, horizon=horizon,
            quantiles=quantiles, time=args.time, series=args.series, alarms_a_week=args.alarm_rate,
        ),
        out,
    )  # fmt: skip
    print(f"{out}: {spec.id}, {spec.state_size:,} numbers for each series. Serve it: tidecast serve --model {out}")
    return 0


def _names(flag: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names) or "ts" in names:
        raise UsageError(f"{flag} must be names that differ, with commas, and none of them ts, the event time",
                         got=text, do="Name each field once, such as temperature,pressure.")  # fmt: skip
    return names


def _steps(text: str, step: str, step_ms: int) -> int:
    """The horizon in steps."""
    whole = re.fullmatch(r"\d+", text.strip())
    ms = int(whole[0]) * step_ms if whole else parse_duration_ms(text)
    steps, rest = divmod(ms, step_ms)
    if rest or not 1 <= steps <= LONGEST_HORIZON:
        raise UsageError(
            f"--horizon must be 1 to {LONGEST_HORIZON:,} whole steps of {step}",
            got=text if whole else f"{text}, {ms / step_ms:g} steps",
            do="Give a number of steps, or a time that is a multiple of the step.",
        )
    return steps


def _quantiles(text: str) -> list[float]:
    try:
        quantiles = [float(part) for part in text.split(",")]
    except ValueError:
        quantiles = []
    if not quantiles or quantiles != sorted(set(quantiles)) or not all(0 < q < 1 for q in quantiles):
        raise UsageError("--quantiles must be ascending numbers between 0 and 1, with commas", got=text,
                         do="Write them like 0.1,0.5,0.9.")  # fmt: skip
    return quantiles
