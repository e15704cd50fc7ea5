"""The live page as the README installs and starts it, in an environment of its own without torch."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.support.checkout import copy_tree
from tests.support.printed import printed
from tests.support.serving import PATIENCE
from tidecast.service.broker.embedded.server import free_port


@pytest.fixture
def bin_folder(tmp_path):
    """The programs of a new, empty environment."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    return tmp_path / "venv" / "bin"


@pytest.mark.timeout(300)
def test_the_printed_commands_install_the_page_and_start_it_and_ctrl_c_ends_it(bin_folder, broker, tmp_path):
    port = free_port()
    env = {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "TIDECAST_BOOTSTRAP_SERVERS": broker,
        "TIDECAST_WATCH_PORT": str(port),
    }
    log = tmp_path / "log"
    with log.open("w") as out:
        shell = subprocess.Popen(
            ["bash", "-ec", printed("live-page")],
            cwd=copy_tree(tmp_path / "tidecast"),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        page = page_of(shell, f"http://127.0.0.1:{port}")
        assert page is not None, log.read_text()
        assert b"tidecast" in page
        os.killpg(shell.pid, signal.SIGINT)  # as a terminal does it
        assert shell.wait(PATIENCE) in (0, 130), log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    assert list(bin_folder.parent.glob("lib/*/site-packages/uvicorn"))
    assert not list(bin_folder.parent.glob("lib/*/site-packages/torch"))


def page_of(shell, url):
    """What the page answers, once it does; None where the shell has ended."""
    while shell.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return None
