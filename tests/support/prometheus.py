"""Finds `prometheus` and `promtool`: on the PATH, or in Debian's package, unpacked into a cache; runs one."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from tests.support.one_at_a_time import one_at_a_time
from tidecast.service.broker.embedded.child_process import start_tied
from tidecast.service.broker.embedded.server import free_port

PACKAGE = "prometheus"  # Debian's and Ubuntu's; it holds both programs, which need nothing but libc


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tidecast" / "prometheus"


@functools.cache
def program(name: str) -> str:
    """The path of one of the two; the test is skipped where it is not there and there is no apt to fetch it with."""
    if found := shutil.which(name):
        return found
    cached = cache_dir() / "usr" / "bin" / name
    with one_at_a_time(cache_dir().with_name("prometheus.lock")):  # another process may be fetching it right now
        if not cached.exists():
            _fetch()
    return str(cached)


def _fetch() -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("neither promtool nor apt-get is here: install Prometheus, so that promtool is on the PATH")
    with tempfile.TemporaryDirectory(dir=cache_dir().parent) as folder:
        download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", PACKAGE]
        done = subprocess.run(download, cwd=folder, capture_output=True, text=True)
        if done.returncode and os.geteuid() == 0:  # a bare machine has no package lists yet
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, text=True)
            done = subprocess.run(download, cwd=folder, capture_output=True, text=True)
        packages = list(Path(folder).glob("*.deb"))
        if done.returncode or not packages:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            pytest.skip(f"apt-get cannot download {PACKAGE} ({last}): install it, so that promtool is on the PATH")
        root = Path(folder) / "root"
        subprocess.run(["dpkg", "-x", packages[0], root], check=True)
        root.chmod(0o755)
        root.replace(cache_dir())


def names_of(registry: CollectorRegistry) -> set[str]:
    """Of all series of a registry."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes.get(family.type, ("",))}


@contextmanager
def running(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The address of a Prometheus with this configuration; its data is in `folder`."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    process = start_tied(command, folder, "log")  # a test that is cut short leaves none behind
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
