"""`tidecast config`: the settings in force, and where each value comes from."""

from __future__ import annotations

import argparse
import json
import os
from itertools import groupby

from tidecast.service.config import loader, settings
from tidecast.service.config.secrets import Secret

HELP = "Print all settings with their present values, and where each value comes from."
EXAMPLE = """\
tidecast config
TIDECAST_HTTP_PORT=9000 tidecast config --input-topic sensors
tidecast config --json | jq '.http_port.value'"""


def configure(parser: argparse.ArgumentParser) -> None:
    """`--json`, and the flags of all settings, to see what they would do."""
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
                "help": settings.FIELDS[name].help,
            }
            for name, (value, origin) in found.items()
        }
        print(json.dumps(entries, indent=2))
        return 0
    wide = max(len(name) for name in found)
    shown = {name: loader.shown_value(value) or "-" for name, (value, _) in found.items()}
    wide_value = max(len(text) for text in shown.values())
    for i, (group, members) in enumerate(groupby(settings.FIELDS.values(), key=lambda setting: setting.group)):
        print(f"{chr(10) if i else ''}# {group}")
        for setting in members:
            origin = found[setting.name][1]
            print(f"{setting.name:<{wide}}  {shown[setting.name]:<{wide_value}}  {origin}")
    return 0


def _shown(value: object) -> object:
    return str(value) if isinstance(value, Secret) else value
