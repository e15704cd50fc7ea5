"""`tidecast replay`: a file through the worker's own pipeline, without Kafka."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import msgspec

from tidecast.service.commands.output import open_output
from tidecast.service.config import loader
from tidecast.service.errors import DataError

HELP = """\
Forecast a file without Kafka: the worker's own pipeline, one JSON line per forecast, in the order of the file.

A line is the forecast record as in the output topic, with "series" added. A forecast uses only its own reading and the
readings before it in the file. Readings that a worker would not answer get no line: duplicates (same time as the last
of their series), late ones (an earlier time) and dead letters. They are counted on stderr by reason, and the exit code
is still 0. A file does not say when its readings arrived: where a series jumps ahead and --late-recovery-readings in a
row then continue from before the jump, the jump counts as a wrong clock, and the series starts again. The model's
config.toml says which columns are used, or has the [input] table by which rows become readings. Where a table joins
rows, readings are taken in the order of time."""
EXAMPLE = """\
tidecast replay --model model --data weather.csv --out forecasts.jsonl
tidecast replay --model model --data weather.csv.gz | jq -c '[.series, .ts, .targets.temp.p50[0]]' | head"""

_SETTINGS = ("model_sha256", "model_max_bytes", "max_gap_steps", "late_recovery_readings", "intra_op_threads")


def configure(parser: argparse.ArgumentParser) -> None:
    """Model, file, output, and the settings that affect forecasts."""
    parser.add_argument("--model", metavar="DIR", required=True, help="model directory: model.onnx and config.toml")
    parser.add_argument("--data", metavar="FILE", required=True, help="CSV (also .gz) or Parquet")
    parser.add_argument("--input", dest="table", metavar="FILE", help="TOML file whose [input] table says how rows "
                        "become readings [what the model's config.toml says]")  # fmt: skip
    parser.add_argument("--out", metavar="FILE", default="-", help="JSON lines; - is stdout [-]")
    loader.add_flags(parser, *_SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Write the forecasts; the exit code."""
    from tidecast.service.datafiles.readings import check_features, read_model_config
    from tidecast.service.input.files import DataFile, table_of
    from tidecast.service.model.session import Model
    from tidecast.service.model.starter_url import local_model
    from tidecast.service.pipeline.pipeline import Pipeline
    from tidecast.service.pipeline.policy import Policy
    from tidecast.service.pipeline.replay_file import Tally, replay, window_rows
    from tidecast.service.state.capacity import MOST_SERIES

    config = loader.from_args(args)
    args.model = local_model(args.model)
    described = read_model_config(args.model)
    file = DataFile(args.data, described.columns, table_of(args.table, described))
    columns = file.columns
    model = Model.load(
        args.model,
        max_bytes=config.model_max_bytes,
        intra_op_threads=config.intra_op_threads,
        sha256=config.model_sha256 or None,
    )
    check_features(columns, model.spec.features, args.model)
    # The file is history: no clock limits its times, and no series expires.
    config = msgspec.structs.replace(
        config,
        max_future_seconds=0.0,
        series_ttl_seconds=0.0,
        max_series=MOST_SERIES,
        dead_letter_late=False,
        dead_letter_duplicate=False,
    )
    policy = replace(Policy.from_settings(config, model.spec.state_size), records_are_dated=False)
    pipeline = Pipeline(model, policy, output_topic="forecasts", dead_letter_topic="dead-letters")
    rows = window_rows(model.spec)  # of readings
    windows = file.chunks(max(1, rows // len(columns.features)) if columns.each_column else rows)

    tally = Tally()
    with open_output(args.out, "Give another --out.") as out:
        for lines in replay(pipeline, windows, tally):
            out.writelines(lines)
    if not tally.readings:
        raise DataError(f"{args.data} has no rows below its header")
    print(tally.summary(), *(f"replay: {each}" for each in file.counts.sentences()), sep="\n", file=sys.stderr)
    return 0
