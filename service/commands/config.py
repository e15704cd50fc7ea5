"""`tidecast config`: what is in force, and where each value came from."""

from __future__ import annotations

import argparse
import json
import os

from tidecast.service.config import loader, settings
from tidecast.service.config.secrets import Secret

HELP = "Print the settings in force, and where each came from."
EXAMPLE = """\
tidecast config
TIDECAST_HTTP_PORT=9000 tidecast config --input-topic sensors
tidecast config --json | jq '.http_port.value'"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Its own flag, and those of every setting, to try out what they would do."""
    parser.add_argument("--json", action="store_true", help="one JSON object: name -> value, origin, variable, help")
    loader.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print them on stdout."""
    found = loader.resolve(loader.flags_of(args), os.environ)
    if args.json:
        entries = {
            name: {
                "value": _shown(value),
                "origin": origin,
                "default": _shown(settings.default(name)),
                "variable": settings.variable(name),
                "flag": settings.flag(name),
                "help": settings.FIELDS[name].metadata["help"],
            }
            for name, (value, origin) in found.items()
        }
        print(json.dumps(entries, indent=2))
        return 0
    wide = max(len(name) for name in found)
    shown = {
        name: str(value).lower() if isinstance(value, bool) else str(value) or "-" for name, (value, _) in found.items()
    }
    wide_value = max(len(text) for text in shown.values())
    group = ""
    for name, (_, origin) in found.items():
        if settings.FIELDS[name].metadata["group"] != group:
            print(f"{'' if not group else chr(10)}# {settings.FIELDS[name].metadata['group']}")
            group = settings.FIELDS[name].metadata["group"]
        print(f"{name:<{wide}}  {shown[name]:<{wide_value}}  {origin}")
    return 0


def _shown(value: object) -> object:
    return str(value) if isinstance(value, Secret) else value
