"""`tidecast promote`: decides which of a group's models answers, or lists what was decided."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import msgspec

from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.broker.port import Broker
from tidecast.service.champion.decisions import By, Decision, History, Numbered, read_history, write_decision
from tidecast.service.champion.group_models import GroupModels, committed_models
from tidecast.service.config import loader, settings
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, UsageError
from tidecast.service.timestamps import format_time
from tidecast.service.wording import counted

HELP = """\
Let another model of the group answer: one of those that its workers run with --shadow.

MODEL is a model directory, the id of a model (name@hash, as in the forecasts), or its name if only one has it. The
decision is a record of the decisions topic; the workers read it and change over, partition by partition. --rollback
goes back to the model before; --list shows all decisions, also those of workers with --promote auto."""
EXAMPLE = """\
tidecast promote build/weather-2 --wait 60
tidecast promote --rollback
tidecast promote --list"""

_LOOK_S = 0.5
_ID = re.compile(r".+@[0-9a-f]{12}", re.DOTALL)


def configure(parser: argparse.ArgumentParser) -> None:
    """What to do, and where Kafka is."""
    parser.add_argument("candidate", nargs="?", metavar="MODEL", help="the model that is to answer")
    parser.add_argument("--rollback", action="store_true", help="the model before the last decision answers again")
    parser.add_argument("--list", action="store_true", help="list all decisions about the group, the last one last")
    parser.add_argument("--json", action="store_true", help="with --list: one JSON object per line")
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", help="wait until all partitions are committed by that model"
    )
    loader.add_flags(parser, *settings.CONNECTION, "decisions_topic", "input_topic", "group", "model_max_bytes")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit code."""
    if (args.candidate is not None) + args.rollback + args.list != 1:
        raise UsageError("tidecast promote takes MODEL, --rollback or --list", do="Give one of the three.")
    if args.wait is not None and (args.list or not 0.0 < args.wait < float("inf")):
        raise UsageError("--wait is a number of seconds above 0, for MODEL and --rollback", got=args.wait)
    if args.json and not args.list:
        raise UsageError("--json is for --list")
    config = loader.from_args(args)
    wanted = args.candidate
    if wanted is not None and Path(wanted).exists():
        wanted = _id_in_file(wanted, config)
    broker = connect_from_settings(config)
    try:
        history = read_history(broker, config)
        if args.list:
            _list(history, as_json=args.json)
            return 0
        return _decide(broker, config, history, wanted, wait_s=args.wait)
    finally:
        broker.close()


def _id_in_file(path: str, config: Settings) -> str:
    from tidecast.service.model.session import Model  # onnxruntime takes a while to import, and only this needs it

    return Model.load(path, max_bytes=config.model_max_bytes).spec.id


def _decide(broker: Broker, config: Settings, history: History, wanted: str | None, *, wait_s: float | None) -> int:
    group = committed_models(broker, config)
    was = _answering(history, group)
    by: By = "rollback" if wanted is None else "command"
    to = _before(history, config) if wanted is None else _resolved(wanted, history, group.champions)
    if not group.runs(to):
        raise BrokerError(
            f"the workers of {config.group} do not run {to}",
            got=f"commits of models with the hashes {', '.join(sorted(group.members))}",
            do="Start them with --shadow and its directory first. They name their models with each commit.",
        )
    if to == history.champion:
        print(f"{to} is the champion of {config.group} already")
    else:
        decision = Decision(ts=round(time.time() * 1_000), group=config.group, was=was, to=to, by=by)
        write_decision(broker, config, decision)
        print(f"{to} is to answer for {config.group}" + (f", in the place of {was}" if was else ""))
    if wait_s is not None:
        _wait(broker, config, to, wait_s)
        print(f"all partitions are committed by {to}")
    return 0


def _answering(history: History, group: GroupModels) -> str:
    """Id of the model that answers, "" where nobody knows. After a hot swap the commits know better."""
    if history.champion is not None and group.runs(history.champion):
        return history.champion
    return next(iter(group.champions)) if len(group.champions) == 1 else ""


def _before(history: History, config: Settings) -> str:
    last = history.last
    if last is None or not last.decision.was:
        raise BrokerError(
            f"there is no model to go back to: {config.decisions_topic} "
            + (f"holds no decision about {config.group}" if last is None else "does not say which one was before"),
            do="Name the model: tidecast promote MODEL",
        )
    return last.decision.was


def _resolved(wanted: str, history: History, champions: set[str]) -> str:
    """The id that is meant by an id, or by a name that the decisions or the commits know."""
    if _ID.fullmatch(wanted):
        return wanted
    decided = {model for each in history.decisions for model in (each.decision.was, each.decision.to) if model}
    known = champions | decided
    found = sorted(model for model in known if wanted == model.rpartition("@")[0])
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(known)) or "none"
    raise UsageError(
        f"there is no model {wanted!r} in the group" if not found else f"several models have the name {wanted!r}",
        do=f"Give the directory or the id of a model that the workers run with --shadow. Known: {listed}.",
    )


def _wait(broker: Broker, config: Settings, model: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (serving := committed_models(broker, config).champions) != {model}:
        if time.monotonic() >= deadline:
            raise BrokerError(
                f"after {seconds:g} s not all partitions are committed by {model}",
                got=", ".join(sorted(serving)) or "no commit",
                do="The decision stands. Is it a model that the workers run with --shadow, and do they run? Their log "
                "says what became of it.",
            )
        time.sleep(_LOOK_S)


def _list(history: History, *, as_json: bool) -> None:
    if not as_json and not history.decisions:
        print("no decisions", file=sys.stderr)
    for each in history.decisions:
        print(msgspec.json.encode(_facts(each)).decode() if as_json else _line(each))


def _facts(each: Numbered) -> dict[str, object]:
    facts = {"number": each.number, **msgspec.to_builtins(each.decision)}
    return facts | ({"void": True} if each.void else {})


def _line(each: Numbered) -> str:
    decision, evidence = each.decision, each.decision.evidence
    text = f"{each.number}  {format_time(decision.ts)}  {decision.was or '?'} -> {decision.to}  by {decision.by}"
    if evidence is not None:
        loss = ", ".join(
            f"{target} {lead} ahead {ratio:.3f}"
            for target, leads in evidence.loss.items()
            for lead, ratio in leads.items()
        )
        text += f"  {counted(evidence.readings, 'reading')} of {evidence.series:,} series, "
        text += f"e-value {evidence.e_value:.4g} of {evidence.needed:g}, loss of the champion's: {loss}"
    return text + ("  void: somebody else decided before" if each.void else "")
