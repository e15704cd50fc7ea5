"""The command line: help worth reading, one line for a mistake, the right exit code."""

import io
import json
import logging
import subprocess
import sys
import types

import pytest

from tidecast.service import cli
from tidecast.service.errors import DataError
from tidecast.service.observability import logs


@pytest.fixture
def command(monkeypatch):
    """A command called `try`, whose `run` a test replaces."""
    module = types.SimpleNamespace(
        HELP="Does nothing.",
        EXAMPLE="tidecast try --often",
        configure=lambda parser: parser.add_argument("--often", action="store_true", help="again"),
        run=lambda args: 0,
    )
    monkeypatch.setitem(sys.modules, "try_command", module)
    monkeypatch.setitem(cli.COMMANDS, "Test", {"try": "try_command"})
    return module


def raising(error: BaseException):
    def run(args):
        raise error

    return run


def test_help_of_a_command_starts_with_its_example(command, capsys):
    assert cli.main(["try", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip() == "tidecast try --often"
    assert "Does nothing." in out and "--often" in out


def test_a_users_mistake_is_one_line_on_stderr_without_a_traceback(command, capsys):
    command.run = raising(DataError("no such column", got="tempp", do="Columns are: temp."))
    assert cli.main(["try"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "tidecast: no such column, got 'tempp'. Columns are: temp.\n"
    assert captured.out == ""


def test_an_error_about_a_misspelt_flag_names_the_nearest_one(command, capsys):
    assert cli.main(["try", "--oftn"]) == 2
    assert "Did you mean --often?" in capsys.readouterr().err


def test_an_error_about_a_misspelt_command_names_the_nearest_one(capsys):
    assert cli.main(["confg"]) == 2
    assert "Did you mean `tidecast config`?" in capsys.readouterr().err


def test_ctrl_c_exits_130_without_a_traceback(command, capsys):
    command.run = raising(KeyboardInterrupt())
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "tidecast: interrupted\n"


def test_an_internal_error_keeps_its_traceback(command):
    command.run = raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["try"])


def test_a_command_that_lacks_torch_says_what_to_install(command, capsys):
    command.run = raising(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert cli.main(["try"]) == 1
    assert capsys.readouterr().err == "tidecast: try needs torch. Training needs torch: pip install 'tidecast[train]'\n"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tidecast ")


def test_without_a_command_the_overview_is_shown_and_the_exit_code_is_2(capsys):
    assert cli.main([]) == 2
    assert "tidecast demo" in capsys.readouterr().err


def test_the_overview_has_every_command_with_a_line_of_help(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli.command_names():
        assert any(line.strip().startswith(name + " ") and len(line) > 25 for line in out.splitlines()), name


@pytest.mark.parametrize("name", cli.command_names())
def test_each_commands_help_starts_with_an_example_of_itself(name, capsys):
    assert cli.main([name, "--help"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"tidecast {name}" in first or "TIDECAST_" in first


def test_starting_the_command_line_imports_nothing_heavy():
    heavy = ["torch", "onnx", "onnxruntime", "kafka", "polars", "rich", "matplotlib", "numpy", "tidecast.training"]
    modules = "tidecast.service.cli, tidecast.service.commands.config"
    code = f"import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_tidecast_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "tidecast", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("tidecast: unknown command 'nothing'")


@pytest.fixture
def stream():
    return io.StringIO()


def test_a_log_line_holds_its_fields_and_quotes_blanks(stream):
    logs.setup("info", "text", stream)
    logging.getLogger("x").info("took over", extra={"partitions": [0, 1], "why": "two words", "seconds": 0.123456789})
    logging.getLogger("x").debug("not shown")
    line = stream.getvalue()
    assert line.endswith('INFO    took over partitions=0,1 why="two words" seconds=0.123457\n')
    assert line.count("\n") == 1


def test_a_json_log_line_is_one_object_even_with_a_traceback(stream):
    logs.setup("warning", "json", stream)
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("x").exception("failed", extra={"offset": 5, "parts": {1, 2}})
    entry = json.loads(stream.getvalue())
    assert entry["level"] == "error" and entry["offset"] == 5 and entry["parts"] == [1, 2]
    assert "ValueError" in entry["exception"]


def test_a_line_break_in_a_message_cannot_forge_a_log_line(stream):
    logs.setup("info", "text", stream)
    logging.getLogger("x").info("a\nb", extra={"key": "c\nd"})
    assert stream.getvalue().count("\n") == 1


def test_messages_of_a_kafka_client_without_a_broker_do_not_crowd_out_our_own(stream):
    logs.setup("info", "text", stream)
    for _ in range(100):
        logging.getLogger("kafka.cluster").error("Connection failed", exc_info=OSError("gone"))
        logging.getLogger("tidecast.worker").warning("Kafka does not answer, waiting")
    assert stream.getvalue().count("Connection failed") == 1
    assert stream.getvalue().count("does not answer") == 100
    assert "OSError" not in stream.getvalue()


def test_a_repeated_message_of_the_kafka_client_is_logged_again_after_a_while():
    now = [0.0]
    repeats = logs.RepeatFilter(30, clock=lambda: now[0])
    record = logging.LogRecord("kafka.net", logging.ERROR, "net.py", 1, "lost", None, None)
    assert (repeats.filter(record), repeats.filter(record)) == (True, False)
    now[0] = 31
    assert repeats.filter(record)


def test_a_lost_connection_is_one_line_of_the_kafka_client_not_one_for_each_of_its_layers():
    repeats = logs.RepeatFilter(30, clock=lambda: 0.0)
    places = ["net.transport", "net.connection", "net.manager", "cluster", "producer.sender", "coordinator.base"]
    records = [logging.LogRecord(f"kafka.{p}", logging.ERROR, f"{p}.py", 1, "lost", None, None) for p in places]
    assert [p for p, r in zip(places, records, strict=True) if repeats.filter(r)] == [
        "net.transport",
        "producer.sender",
        "coordinator.base",
    ]


def test_a_route_needs_a_source_topic_that_no_other_topic_is_and_a_group_of_its_own(capsys):
    assert cli.main(["route"]) == 2
    assert "no source topic is named" in capsys.readouterr().err
    assert cli.main(["route", "--source-topic", "readings"]) == 2
    assert "the topics must differ" in capsys.readouterr().err
    assert cli.main(["route", "--source-topic", "sensors", "--route-group", "tidecast"]) == 2
    assert "must have a group each" in capsys.readouterr().err
