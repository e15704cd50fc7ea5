"""Settings: one place, flag > environment > default, and every mistake named."""

import argparse
import json

import pytest

from tidecast.service.config import loader, settings
from tidecast.service.config.loader import load
from tidecast.service.config.settings import Settings
from tidecast.service.errors import UsageError


def parse(*argv: str, names: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    loader.add_flags(parser, *names)
    return parser.parse_args(argv)


def test_a_flag_wins_over_the_environment_and_that_over_the_default():
    env = {"TIDECAST_HTTP_PORT": "9000", "TIDECAST_GROUP": "env"}
    found = loader.resolve({"group": "flag"}, env)
    assert found["group"] == ("flag", "--group")
    assert found["http_port"] == (9000, "TIDECAST_HTTP_PORT")
    assert found["input_topic"] == ("readings", "default")


def test_a_misspelt_variable_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"TIDECAST_IMPUT_TOPIC.*Did you mean TIDECAST_INPUT_TOPIC"):
        load({}, {"TIDECAST_IMPUT_TOPIC": "x"})


def test_variables_that_kubernetes_adds_for_a_service_called_tidecast_are_accepted():
    links = {
        "TIDECAST_SERVICE_HOST": "10.0.0.1",
        "TIDECAST_SERVICE_PORT_HTTP": "9108",
        "TIDECAST_PORT": "tcp://10.0.0.1:9108",
        "TIDECAST_WORKER_PORT": "tcp://10.0.0.1:9108",
        "TIDECAST_PORT_9108_TCP_ADDR": "10.0.0.1",
    }
    assert load({}, links) == Settings()
    with pytest.raises(UsageError, match="TIDECAST_HTPP_PORT"):
        load({}, {"TIDECAST_HTPP_PORT": "9108"})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("http_port", "http", "TIDECAST_HTTP_PORT must be a whole number of at least 0 and at most 65,535, got 'http'"),
        ("http_port", "70000", "at most 65,535"),
        ("http_port", "1.5", "whole number"),
        ("shutdown_timeout_seconds", "nan", "must be a number"),
        ("shutdown_timeout_seconds", "0", "at least 0.1"),
        ("dead_letter_late", "maybe", "true or false"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("client", "librdkafka", "one of auto, kafka-python"),
        ("group", "  ", "must not be empty"),
        ("input_topic", "my topic", "must be a topic name"),
        ("output_topic", "..", "must be a topic name"),
        ("max_poll_records", "0", "at least 1"),
        ("max_series", "many", "TIDECAST_MAX_SERIES must be a whole number of at least 1 or auto, got 'many'"),
        ("max_series", "0", "at least 1 or auto"),
    ],
)
def test_an_invalid_value_is_refused_with_the_flag_or_variable_that_set_it(name, text, says):
    with pytest.raises(UsageError, match=says):
        load({}, {settings.variable(name): text})
    with pytest.raises(UsageError, match=settings.flag(name)):
        load({name: text}, {})


@pytest.mark.parametrize(("text", "value"), [("true", True), ("0", False), ("YES", True), ("off", False)])
def test_a_switch_can_be_set_from_the_environment(text, value):
    assert load({}, {"TIDECAST_DEAD_LETTER_LATE": text}).dead_letter_late is value


def test_a_worker_that_would_read_its_own_output_is_refused():
    with pytest.raises(UsageError, match="the topics must differ"):
        load({"output_topic": "readings"}, {})


def test_flags_that_were_not_given_are_none():
    args = parse("--http-port", "0", "--no-dead-letter-late")
    assert loader.flags_of(args) == {"http_port": "0", "dead_letter_late": False}
    assert loader.from_args(args).http_port == 0


def test_a_command_can_take_only_some_settings():
    assert vars(parse("--input-topic", "x", names=("input_topic",))) == {"input_topic": "x"}


def test_from_args_reads_the_environment_of_this_process(monkeypatch):
    monkeypatch.setenv("TIDECAST_GROUP", "here")
    assert loader.from_args(parse()).group == "here"


def test_every_setting_has_help_a_group_and_a_default_that_it_would_accept():
    for name, setting in settings.FIELDS.items():
        assert len(setting.help) > 15, name
        assert setting.group, name
        value = settings.default(name)
        assert getattr(load({name: value}, {}), name) == value
        assert getattr(load({}, {settings.variable(name): str(value)}), name) == value


def test_settings_cannot_be_changed_once_made():
    with pytest.raises(AttributeError):
        Settings().group = "other"


def test_the_embedded_brokers_data_follow_xdg(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert load({}, {}).broker_data_dir == "/data/tidecast/broker"


def test_config_prints_each_value_and_its_origin(monkeypatch, capsys):
    from tidecast.service.cli import main

    monkeypatch.setenv("TIDECAST_GROUP", "mine")
    assert main(["config", "--http-port", "1234"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    assert set(lines) == set(settings.FIELDS)
    assert lines["group"] == ["mine", "TIDECAST_GROUP"]
    assert lines["http_port"] == ["1234", "--http-port"]
    assert lines["dead_letter_late"] == ["false", "default"]


def test_config_as_json_can_be_read_by_a_program(capsys):
    from tidecast.service.cli import main

    assert main(["config", "--json", "--log-format", "json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert set(entries) == set(settings.FIELDS)
    assert entries["log_format"]["value"] == "json"
    assert entries["log_format"]["origin"] == "--log-format"


def test_a_commit_interval_that_kafka_would_end_the_transaction_before_is_refused():
    with pytest.raises(UsageError, match=r"--commit-interval-ms: a commit at least every 5000 ms.*got 20000"):
        load({"commit_interval_ms": 20_000}, {})
    assert load({"commit_interval_ms": 20_000, "delivery": "at-least-once"}, {}).commit_interval_ms == 20_000


def test_http_listens_only_on_this_machine_by_default():
    settings = load({}, {})
    assert (settings.http_host, settings.watch_host) == ("127.0.0.1", "127.0.0.1")


def test_the_flag_of_shadows_may_be_given_several_times_and_the_variable_has_commas():
    given = loader.flags_of(parse("--shadow", "build/one", "--shadow=build/two,build/three"))
    assert load(given, {}).shadows == ["build/one", "build/two", "build/three"]
    assert load({}, {"TIDECAST_SHADOW": "build/one, build/two"}).shadows == ["build/one", "build/two"]
    assert load({}, {}).shadows == []
