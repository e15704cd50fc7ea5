"""The `tidecast` command: imports the module of one command, runs it, and prints its errors as one line.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NoReturn, Protocol, cast

from tidecast import __version__
from tidecast.service.config.secrets import masked
from tidecast.service.errors import BrokerUnavailable, ConnectionClosed, ConnectionRejected, TidecastError, UsageError

# Imported by name, only when needed: `tidecast config` should not have to import onnxruntime.
COMMANDS: dict[str, dict[str, str]] = {
    "Try it": {"demo": "tidecast.service.commands.demo"},
    "Forecast": {
        "serve": "tidecast.service.commands.serve",
        "replay": "tidecast.service.commands.replay",
        "route": "tidecast.service.commands.route",
        "promote": "tidecast.service.commands.promote",
    },
    "Feed and run Kafka": {
        "broker": "tidecast.service.commands.broker",
        "topics": "tidecast.service.commands.topics",
        "produce": "tidecast.service.commands.produce",
        "state": "tidecast.service.commands.state",
    },
    "Inspect": {
        "input": "tidecast.service.commands.input",
        "doctor": "tidecast.service.commands.doctor",
        "watch": "tidecast.service.commands.watch",
        "config": "tidecast.service.commands.config",
    },
}
# The trainer's commands are entry points, so that the service never imports the trainer.
ENTRY_POINTS = "tidecast.commands"
TRAINING = ("starter", "inspect", "train", "evaluate", "publish", "tune", "recipe")
_TRAIN_EXTRA = ("torch", "onnx", "onnxscript", "polars", "matplotlib", "rich", "tomli_w", "optuna")

_OF_THE_CONNECTION = (BrokerUnavailable, ConnectionClosed, ConnectionRejected)
_MORE = " To find out more: tidecast doctor, with the same flags."


class Command(Protocol):
    """What the module of a command contains."""

    HELP: str  # one line for the overview; more below it for its own --help
    EXAMPLE: str  # the first that --help prints

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit code."""


class Parser(argparse.ArgumentParser):
    """argparse with short usage lines, and errors that are UsageErrors and name the nearest flag or action.

    A command may split into actions with `add_subparsers`. The action that it sets as the default of `action` is meant
    where the first word is a flag or looks like a file.
    """

    def __init__(self, prog: str, **options: Any) -> None:
        width = min(120, shutil.get_terminal_size((110, 24)).columns)
        super().__init__(
            prog=prog,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=width),
            **options,
        )
        self.actions: Mapping[str, Parser] = {}
        self.usage = "%(prog)s [flags]"  # thirty flags in one paragraph help nobody; they are listed below
        self.set_defaults(parser=self)  # an action's parser takes its place

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse does; a positional argument goes into the usage line."""
        made = super().add_argument(*names, **options)
        if not made.option_strings:
            shown = f"[{made.metavar}]" if made.nargs in ("?", "*") else str(made.metavar)
            self.usage = (self.usage or "").replace("[flags]", f"{shown} [flags]")
        return made

    def add_subparsers(self, **options: Any) -> Any:  # argparse keeps the class that it returns to itself
        """As argparse does, with `ACTION` in the usage line."""
        self.usage = "%(prog)s ACTION [flags]"
        made = super().add_subparsers(prog=self.prog, dest="action", metavar="ACTION", required=True, **options)
        self.actions = made.choices
        self.epilog = f"`{self.prog} ACTION --help` lists the flags of an action."
        return made

    def flags(self) -> list[str]:
        """All flags: what its help lists, not what it mentions in a sentence."""
        listed = re.findall(r"^  (-.*?)(?:  |$)", self.format_help(), re.MULTILINE)
        return re.findall(r"(?<![\w-])--[\w-]+", " ".join(listed))

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """As `parse_args`, with the default action; `names` may also follow the flags: `state reset --force JFK`."""
        first = args[0] if args else "--"
        if self.actions and first not in ("-h", "--help") and (first.startswith("-") or re.search("[./]", first)):
            args = [self.get_default("action"), *args]
        parsed, rest = self.parse_known_args(args)
        if rest and hasattr(parsed, "names") and not any(each.startswith("-") for each in rest):
            parsed.names += rest
        elif rest:
            flag = rest[0].partition("=")[0]
            fitting = [name for name, parser in self.actions.items() if flag in parser.flags()]
            if fitting:
                raise UsageError(f"{parsed.parser.prog} has no {flag}", do=f"It is for: {', '.join(fitting)}.")
            parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that all errors end in `main`."""
        match = re.search(r"unrecognized arguments: (-[^\s=]+)|invalid choice: '(.*?)'", message)
        near = difflib.get_close_matches(match[1] or match[2], [*self.flags(), *self.actions], n=1) if match else []
        do = f"Did you mean {near[0]}?" if near else f"Run `{self.prog} --help` for what it takes."
        raise UsageError(f"{self.prog}: {message}", do=do)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except TidecastError as error:
        more = _MORE if isinstance(error, _OF_THE_CONNECTION) else ""
        print(f"tidecast: {masked(str(error))}{more}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tidecast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `tidecast … | head` has closed the pipe. Without this the interpreter reports an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(args: list[str]) -> int:
    if not args:
        print(overview(), file=sys.stderr)
        return 2
    name, rest = args[0], args[1:]
    if name in ("-h", "--help", "help"):
        if name != "help" or not rest:
            print(overview())
            return 0
        name, rest = rest[0], ["--help"]
    if name in ("-V", "--version"):
        print(f"tidecast {__version__}")
        return 0
    try:
        command = find(name)
        parser = Parser(prog=f"tidecast {name}")
        command.configure(parser)
        if not {"-h", "--help"}.isdisjoint(rest) and rest[0] not in parser.actions:
            print(f"{_indent(command.EXAMPLE)}\n\n{command.HELP}\n\n{parser.format_help()}", end="")
            return 0
        try:
            parsed = parser.parse(rest)
        except SystemExit as stop:  # --help of an action
            return int(stop.code or 0)
        return command.run(parsed)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] in _TRAIN_EXTRA:
            raise TidecastError(
                f"{name} needs {missing.name}", do="Training needs torch: pip install 'tidecast[train]'"
            ) from None
        raise


def find(name: str) -> Command:
    """The module of one command.

    Raises:
        UsageError: there is no such command.
    """
    for group in COMMANDS.values():
        if name in group:
            return cast(Command, importlib.import_module(group[name]))
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return cast(Command, entry.load())
    if name in TRAINING:
        raise UsageError(f"{name} is part of the trainer", do="Run: pip install 'tidecast[train]'")
    near = difflib.get_close_matches(name, command_names(), n=1)
    hint = f"Did you mean `tidecast {near[0]}`?" if near else "Run `tidecast --help` for the list."
    raise UsageError(f"unknown command {name!r}", do=hint)


def command_names() -> list[str]:
    """All commands that can be run here, in the order of the overview."""
    own = [name for group in COMMANDS.values() for name in group]
    return own + [entry.name for entry in metadata.entry_points(group=ENTRY_POINTS) if entry.name not in own]


def overview() -> str:
    """What `tidecast --help` prints."""
    lines = [
        "tidecast: forecasts for streams of sensor readings, from Kafka to Kafka",
        "",
        "  tidecast demo                                    # all of it on this machine, in one command",
        "  tidecast train weather.toml --out model          # train: a CSV becomes one ONNX file",
        "  tidecast broker                                  # a local Kafka, if you have none",
        "  tidecast topics create --partitions 4",
        "  tidecast serve --model model                     # readings in, forecasts out",
        "  tidecast watch                                   # the live page, in a browser",
    ]
    training = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
    for title, group in {**COMMANDS, "Train": dict.fromkeys(sorted(training, key=_training_order), "")}.items():
        if group:
            lines += ["", f"{title}:"] + [f"  {name:<10} {_help_of(name)}" for name in group]
    lines += [
        "",
        "`tidecast COMMAND --help` starts with an example. Every setting is a flag or a TIDECAST_* variable;",
        "`tidecast config` shows the present values. Data goes to stdout, logs to stderr.",
    ]
    return "\n".join(lines)


def _training_order(name: str) -> tuple[int, str]:
    return (TRAINING.index(name) if name in TRAINING else len(TRAINING), name)


def _help_of(name: str) -> str:
    try:
        return find(name).HELP.strip().splitlines()[0]
    except ModuleNotFoundError as missing:
        return f"(needs {missing.name}: pip install 'tidecast[train]')"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.strip("\n").splitlines())
