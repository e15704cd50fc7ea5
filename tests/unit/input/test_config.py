"""The `[input]` table: what is wrong with one is a sentence that says what to do; paths and times of all forms."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidecast.service.errors import UsageError
from tidecast.service.input.config import InputConfig, parse_input, preset_names, read_input
from tidecast.service.input.paths import MISSING, parse_paths
from tidecast.service.input.rejected import RecordRejected
from tidecast.service.input.times import TimeReader

REFUSED = [
    ({"kye": "a"}, "[input] has the unknown field `kye`. Did you mean key?"),
    ({"zzz": 1}, "[input] has the unknown field `zzz`. The names are in docs/input.md."),
    ({"preset": "telegaf"}, "there is no preset of this name, got 'telegaf'. Did you mean telegraf?"),
    ({"preset": "zzz"}, "There are: cloudevents, connect,"),
    ({"preset": "debezium"}, "the preset debezium needs key. Write for example: key ="),
    ({"time": 5}, "[input]: time: Expected `str`, got `int`. The names and types are in docs/input.md."),
    ({"format": "xml"}, "[input]: format: Invalid enum value 'xml'"),
    ({"time": ""}, "time is empty, got ''. Say where it is"),
    ({"key": ""}, "key: a path is empty, got ''"),
    ({"time": "a..b"}, "time: a path cannot be read at '..b', got 'a..b'. Write it like fields.temperature"),
    ({"key": "a/b"}, "key: a path cannot be read at '/b', got 'a/b'"),
    ({"fields": {"temp": "a[x"}}, "fields.temp: a path cannot be read at '[x'"),
    ({"fields": {"temp": ""}}, "fields.temp: a path is empty"),
    ({"skip_if": {"@nme": 1}}, "skip_if: @ begins a path only in @key, @record, @topic, @name, @item and @header:NAME"),
    ({"explode": "@timestamp"}, 'a field whose name begins with @ is quoted: "@timestamp"'),
    ({"root": "@header:"}, "root: the name of the header is missing"),
    ({"key": "{site/{machine}"}, "a brace in key has no partner, or nothing in it, got '{site/{machine}'"),
    ({"key": "{}"}, "a brace in key has no partner, or nothing in it, got '{}'"),
    (
        {"time": "@record | ts"},
        "time: @record is not the last, got '@record | ts'. Write what is tried before it first",
    ),
    ({"key_regex": "("}, "key_regex is no regular expression"),
    ({"time_zone": "Berlin"}, "time_zone is no time zone, got 'Berlin'. Write it like Europe/Berlin, or UTC."),
    ({"time_zone": "Europe"}, "time_zone is no time zone, got 'Europe'"),
    ({"time_zone": "../etc"}, "time_zone is no time zone, got '../etc'"),
    ({"time_format": "%H:%M:%S"}, "time_format is no form of a time with its day, got '%H:%M:%S'"),
    ({"time_format": "%d.%m. %H:%M"}, "time_format is no form of a time with its day"),
    ({"time_format": "%Y-%m-%d %I:%M"}, "time_format is no form of a time with its day"),
    ({"time_format": "%Y-%m-%d %H:%M %Z"}, "with %z for a zone"),
    ({"time_format": "%Q"}, "time_format is no form of a time with its day"),
    ({"format": "csv"}, 'format csv needs columns. Name them: columns = ["time", "temp"].'),
    ({"format": "csv", "columns": ["a", "b", "a"]}, "columns has a name twice, got 'a'"),
    ({"format": "csv", "columns": ["a"], "delimiter": "||"}, "delimiter must be one character, got '||'"),
    ({"format": "csv", "columns": ["a"], "delimiter": "\n"}, "delimiter must be one character"),
    ({"format": "avro"}, "format avro needs one of schema.registry and schema.file"),
    ({"value": "v", "fields": {"a": "x", "b": "x"}}, "fields has a name for two features, got 'x'"),
    ({"fields": {}}, "fields is an empty table. Name the features, or leave it out."),
    ({"fields": {"ts": "a"}}, "a feature cannot have the name ts"),
    ({"fields": "values", "value": "v"}, "fields must be a table where value is set, got 'values'"),
    ({"name": "n"}, "name is set without value, got 'n'. Say where the value is: value = \"value\"."),
    ({"value": "v", "join": {}}, "join is set, but no name"),
    ({"decimal": ";"}, "decimal: Invalid enum value ';'"),
]


@pytest.mark.parametrize(("table", "says"), REFUSED, ids=[str(table) for table, _ in REFUSED])
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence_that_says_what_to_do(table, says):
    with pytest.raises(UsageError) as refused:
        parse_input(table)
    assert says in str(refused.value)
    assert str(refused.value).startswith("[input]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no such file, got"),
        ("[input", "is not TOML:"),
        ("key = 1", "has no table [input]. docs/input.md says what stands in it."),
        ("[input]\nkey = ''", "table.toml: key: a path is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, says):
    file = tmp_path / "table.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_input(file)
    assert says in str(refused.value)
    assert "table.toml" in str(refused.value)


def test_a_users_table_is_put_over_its_preset_name_by_name():
    config = parse_input({"preset": "telegraf", "key": "tags.room", "explode": ""})
    assert (config.key, config.time, config.time_unit, config.explodes) == ("tags.room", "timestamp", "s", [])


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_usable_once_what_it_needs_is_there(name):
    table = {"preset": name}
    with_needs = table | {"key": "id", "fields": {"temp": "t"}}
    config = parse_input(with_needs if name in ("debezium", "homeassistant") else table)
    assert config.preset == name


def test_a_schemas_file_is_taken_from_the_folder_of_the_table(tmp_path):
    file = tmp_path / "input.toml"
    file.write_text('[input]\nformat = "avro"\nschema = { file = "reading.avsc" }\n')
    assert read_input(file).schema.file == str(tmp_path / "reading.avsc")


DOCUMENT = {
    "a": {"b": 1, "x.y": 2, "@t": 3, "c d": 4, "": 5},
    "list": [{"k": "host", "v": 1}, {"k": 7, "v": {"w": 2}}, {"k": True, "v": 3}],
    "text": '{"in": [1, {"side": "x"}]}',
    "broken": "{",
    "null": None,
}
PATHS = [
    ("a.b", 1),
    ('a."x.y"', 2),
    ('"a"."@t"', 3),
    ("a.c d", 4),
    ('a.""', 5),
    ("list[0].v", 1),
    ("list[-1].v", 3),
    ("list[7].v", MISSING),
    ("list[k=host].v", 1),
    ("list[k=7].v.w", 2),
    ("list[k=True].v", 3),
    ("list[k=none].v", MISSING),
    ("a[0]", MISSING),
    ("list.k", MISSING),
    ("text.in[1].side", "x"),
    ("broken.x", MISSING),
    ("null", None),
    ("null.x", MISSING),
    ("a.b.c", MISSING),
]


@pytest.mark.parametrize(("text", "found"), PATHS)
def test_a_path_leads_to_what_it_names(text, found):
    (path,) = parse_paths(text)
    assert path.follow(DOCUMENT) == found or (found is MISSING and path.follow(DOCUMENT) is MISSING)


@settings(deadline=None)
@given(st.text(alphabet='ab.[]"=/|@{} -1', max_size=12))
def test_any_text_is_a_path_or_refused_with_what_to_do(text):
    try:
        for path in parse_paths(text):
            path.follow(DOCUMENT)
    except UsageError as refused:
        assert refused.do


TIMES = [
    ({}, 1700000000000, 1700000000000),
    ({}, 1700000000000.6, 1700000000001),
    ({}, "1700000000000", 1700000000000),
    ({}, "1.7e12", "not ISO 8601"),
    ({}, "1700000000000.6", 1700000000001),
    ({}, " 2023-11-14T22:13:20Z ", 1700000000000),
    ({}, "2023-11-14T22:13:20.999999999Z", 1700000000999),
    ({}, "20231114", 1699920000000),
    ({}, "2023-11-14", 1699920000000),
    ({}, 1700000000, 'seems to count seconds: set time_unit = "s"'),
    ({}, "1700000000", 'seems to count seconds: set time_unit = "s"'),
    ({}, 1700000000.5, 'seems to count seconds: set time_unit = "s"'),
    ({}, 1700000000000000, 'seems to count microseconds: set time_unit = "us"'),
    ({}, 10**40, "outside of 1900..2200 as a number of ms"),
    ({}, float("nan"), "outside of 1900..2200"),
    ({}, float("inf"), "outside of 1900..2200"),
    ({}, True, "must be a number or a text, got True"),
    ({}, [1], "must be a number or a text, got a list of 1"),
    ({}, None, "has no time at 'ts'"),
    ({}, "0001-01-01T00:00:00+14:00", "outside of 1900..2200"),
    ({}, "yesterday", "not ISO 8601 (time_format names another form)"),
    ({"time_unit": "ms"}, 1700000000, 1700000000),
    ({"time_unit": "s"}, 1700000000, 1700000000000),
    ({"time_unit": "s"}, -1, -1000),
    ({"time_unit": "s"}, "17", 17000),
    ({"time_unit": "s"}, 1700000000000, 'seems to count milliseconds: set time_unit = "ms"'),
    ({"time_unit": "us"}, -1, -1),
    ({"time_unit": "ns"}, 1700000000999999999, 1700000000999),
    ({"time_format": "%d.%m.%Y %H:%M"}, "14.11.2023 22:13", 1699999980000),
    ({"time_format": "%Y%m%d%H%M%S"}, "20231114221320", 1700000000000),
    ({"time_format": "%d/%b/%Y:%H:%M:%S %z"}, "14/Nov/2023:23:13:20 +0100", 1700000000000),
    ({"time_format": "%d.%m.%Y"}, 1700000000000, 1700000000000),
    ({"time_zone": "Europe/Berlin"}, "2023-11-14T23:13:20", 1700000000000),
    ({"time_zone": "Europe/Berlin"}, "2023-11-14T22:13:20Z", 1700000000000),
    # The hour that occurs twice is the first of the two; one that is not there: as if no clock had been changed.
    ({"time_zone": "Europe/Berlin"}, "2023-10-29T02:30:00", 1698539400000),
    ({"time_zone": "Europe/Berlin"}, "2023-03-26T02:30:00", 1679794200000),
    ({"time_zone": "America/New_York"}, "2023-11-05T01:30:00", 1699162200000),
]


@pytest.mark.parametrize(("table", "value", "wanted"), TIMES, ids=[f"{t}-{v!r}" for t, v, _ in TIMES])
def test_a_time_of_any_usual_form_is_read_or_refused_with_what_it_seems_to_be(table, value, wanted):
    refused: dict[int, RecordRejected] = {}
    (ms,) = TimeReader(parse_input(table)).read([value], refused.setdefault).tolist()
    if isinstance(wanted, str):
        assert ms == 0
        assert wanted in refused[0].message
    else:
        assert (ms, refused) == (wanted, {})


def test_every_default_is_a_table_that_can_be_used():
    assert parse_input({}) == InputConfig()
    assert re.fullmatch(r"@key", InputConfig().key)
