"""docs/input.md: every name of the [input] table with its default, every preset with a table that can be used."""

from __future__ import annotations

import json
import re
import tomllib

import msgspec
import pytest

from tests.support.printed import ROOT
from tidecast.service.input.config import InputConfig, SchemaConfig, parse_input, preset_names
from tidecast.service.input.rejected import DeadLetterReason

PAGE = (ROOT / "docs" / "input.md").read_text("utf-8")
ROWS = {cells[0].strip("`"): cells for cells in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+) \|$", PAGE, re.M)}
TABLES = [tomllib.loads(block)["input"] for block in re.findall(r"^```toml\n(.+?)^```", PAGE, re.M | re.S)]
EXAMPLES = [table for table in TABLES if "preset" in table]
# Of the worker's own rules, not of how a record is read.
ELSEWHERE = {"late", "duplicate", "non_finite_state"}


@pytest.mark.parametrize("field", msgspec.structs.fields(InputConfig), ids=lambda field: field.name)
def test_each_name_of_the_table_is_on_its_page_with_its_default(field):
    assert field.name in ROWS
    if isinstance(field.default, str | tuple) and field.default:
        wanted = list(field.default) if isinstance(field.default, tuple) else field.default
        assert json.loads(ROWS[field.name][2].strip("`")) == wanted


def test_the_page_has_no_name_that_the_table_has_not():
    names = {name for name in ROWS if re.fullmatch(r"[a-z_]+", name)} - {"name"}
    assert names <= set(InputConfig.__struct_fields__)


@pytest.mark.parametrize("preset", preset_names())
def test_each_preset_is_on_the_page_with_three_lines_that_can_be_used(preset):
    assert f"**`{preset}`**" in PAGE
    (example, *_) = [each for each in EXAMPLES if each.get("preset") == preset]
    assert parse_input(example).preset == preset
    assert len(example) <= 3 or preset == "telegraf"


def test_each_example_is_of_a_preset_that_there_is():
    assert {each["preset"] for each in EXAMPLES if "preset" in each} == set(preset_names())
    assert all(parse_input(each) for each in EXAMPLES)


def test_each_example_without_a_preset_can_be_used_and_each_name_of_its_schema_is_on_the_page():
    others = [table for table in TABLES if "preset" not in table]
    assert [parse_input(each).format for each in others] == ["avro", "json"]
    assert all(f"`{field}`" in PAGE.split("## Schemas")[1] for field in SchemaConfig.__struct_fields__)


@pytest.mark.parametrize("reason", sorted(set(DeadLetterReason) - ELSEWHERE))
def test_each_reason_for_a_refusal_is_on_the_page(reason):
    assert f"`{reason}`" in PAGE
