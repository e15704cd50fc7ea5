"""Where settings come from: a flag wins over the environment, which wins over the default. Nothing else is read."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidecast.service.config.rules import check_together
from tidecast.service.config.secrets import Secret
from tidecast.service.config.settings import (
    FIELDS,
    PREFIX,
    Settings,
    default,
    flag,
    is_secret,
    parse,
    variable,
    variables,
)
from tidecast.service.errors import UsageError

# A Kubernetes Service called "tidecast…" makes the kubelet put these into every pod; they are not settings.
_SERVICE_LINK = re.compile(r"TIDECAST_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def resolve(flags: Mapping[str, object], env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """`name -> (value, where it came from)`; the second is the flag's or variable's name, or "default".

    Raises:
        UsageError: an unknown TIDECAST_* variable, or a value that the setting cannot take.
    """
    _refuse_unknown(env)
    found: dict[str, tuple[Any, str]] = {}
    for name in FIELDS:
        if is_secret(name):
            found[name] = _secret(name, flags.get(name), env)
        elif (given := flags.get(name)) is not None:
            found[name] = (parse(name, given, flag(name)), flag(name))
        elif (text := env.get(variable(name))) is not None:
            found[name] = (parse(name, text, variable(name)), variable(name))
        else:
            found[name] = (default(name), "default")
    check_together(found)
    return found


def _secret(name: str, path: object, env: Mapping[str, str]) -> tuple[Secret, str]:
    """A secret, from the file that the flag or the variable names, or from the variable that holds it."""
    in_file, itself = variables(name)
    if isinstance(path, Secret):
        return path, flag(name)
    if path is not None:
        return _read_secret(str(path), flag(name)), flag(name)
    if env.get(in_file) and env.get(itself):
        raise UsageError(f"both {in_file} and {itself} are set", do="Unset one of them.")
    if path := env.get(in_file):
        return _read_secret(str(path), in_file), in_file
    return (Secret(env[itself]), itself) if env.get(itself) else (Secret(), "default")


def _read_secret(path: str, origin: str) -> Secret:
    """The content of the file, without the newline at its end."""
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            text = file.read(_LONGEST_SECRET + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"the file that {origin} names cannot be read: {why}", got=path) from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or len(text) > _LONGEST_SECRET or "\n" in text or "\0" in text:
        raise UsageError(
            f"the file that {origin} names must contain the secret as its only line",
            got=path,
            do="Write: printf %s … > file",
        )
    return Secret(text)


def load(flags: Mapping[str, object], env: Mapping[str, str]) -> Settings:
    """The settings in force: flag, else TIDECAST_*, else default. `flags` maps field names; None = not given.

    Raises:
        UsageError: an unknown TIDECAST_* variable, or a value that the setting cannot take.
    """
    return Settings(**{name: value for name, (value, _) in resolve(flags, env).items()})


_LONGEST_SECRET = 4096  # characters


def flags_of(args: argparse.Namespace) -> dict[str, object]:
    """What was given on the command line, by field name."""
    return {name: getattr(args, name) for name in FIELDS if getattr(args, name, None) is not None}


def from_args(args: argparse.Namespace) -> Settings:
    """`load` with the flags in `args` and this process's environment."""
    return load(flags_of(args), os.environ)


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of these settings (all of them where none is named), under the settings' own headings.

    Their default is None, so that `load` knows which were given.
    """
    add: dict[str, Callable[..., argparse.Action]] = {}  # by group
    for name in names or FIELDS:
        setting, value = FIELDS[name], default(name)
        if setting.group not in add:
            add[setting.group] = parser.add_argument_group(setting.group).add_argument
        shown, home = shown_value(value), str(Path.home())
        shown = "~" + shown.removeprefix(home) if shown.startswith(home + os.sep) else shown
        text = f"{setting.help} [{shown or 'none'}]".replace("%", "%%")
        if isinstance(value, bool):
            add[setting.group](flag(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif name == "shadow":
            add[setting.group](flag(name), dest=name, metavar="DIR", action=_Joined, default=None, help=text)
        else:
            # Parsed and checked by `load`, as the variables are: one error text for both.
            add[setting.group](flag(name), dest=name, metavar=_metavar(name), default=None, help=text)


class _Joined(argparse.Action):
    """A flag that may be given several times: its values with commas between them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, str(values) if before is None else f"{before},{values}")


def shown_value(value: object) -> str:
    """A setting's value as a text that sets it; a secret's is masked."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _metavar(name: str) -> str:
    if FIELDS[name].choices:
        return "{" + ",".join(FIELDS[name].choices) + "}"
    if FIELDS[name].number_or_word:
        return "N"
    return (
        "FILE"
        if flag(name).endswith("-file") or name == "input"
        else {int: "N", float: "X"}.get(type(default(name)), "TEXT")
    )


def _refuse_unknown(env: Mapping[str, str]) -> None:
    known = [each for name in FIELDS for each in variables(name)]
    for name, value in env.items():
        if name.startswith(PREFIX) and name not in known and not _is_service_link(name, value):
            # Without the prefix: with it, every name looks like every other.
            rest = [each.removeprefix(PREFIX) for each in known]
            near = difflib.get_close_matches(name.removeprefix(PREFIX), rest, n=1)
            hint = f"Did you mean {PREFIX}{near[0]}? " if near else ""
            raise UsageError(
                f"unknown setting {name}", do=f"{hint}Unset it; `tidecast config --help` lists all settings."
            )


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name)) or (name.endswith("_PORT") and "://" in value)
