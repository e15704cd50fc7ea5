"""The project's compose file, brought up by docker or by a tool like it that stands in where there is no docker."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Failed(Exception):
    """Something did not come about; the text says what."""


class Compose:
    """Commands on the compose file.

    Args:
        check: a tool with `up`, `down`, `exec`, `compose ARGS` and `podman ARGS`, instead of docker; "" = docker.
        files: compose files, the overlays last; none = the one that docker finds.
        project: the project's name, as the compose file gives it.
    """

    def __init__(self, check: str, files: Sequence[str], project: str) -> None:
        self._check, self.project = shlex.split(check), project
        self._files = [part for file in files for part in ("-f", file)]

    def ready(self) -> None:
        """Say at once what is missing.

        Raises:
            Failed: docker, its engine or its compose plugin is not there.
        """
        if self._check:
            return
        try:
            run(["docker", "compose", "ls"], seconds=60)
        except (Failed, OSError) as error:
            said = ([*str(error).splitlines()[1:], str(error)])[0]  # what docker says first, not how it ends
            raise Failed(f"needs docker with its engine running and its compose plugin, or --check ({said})") from None

    def up(self, seconds: float) -> None:
        """Build, start, and wait until all is healthy."""
        if self._check:
            run([*self._check, "up", *self._files, "--timeout", f"{seconds:.0f}"], seconds=seconds + 3000, quiet=False)
        else:
            run(
                ["docker", "compose", *self._files, "up", "-d", "--build", "--wait"],
                seconds=seconds + 3000,
                quiet=False,
            )

    def down(self) -> None:
        """Remove the containers, their networks and their volumes."""
        if self._check:
            run([*self._check, "down", *self._files])
        else:
            run(["docker", "compose", *self._files, "down", "--volumes", "--timeout", "40"])

    def scale(self, service: str, count: int) -> None:
        """So many of one service; what runs stays."""
        args = ["up", "-d", "--no-deps", "--no-recreate", "--scale", f"{service}={count}", service]
        self._compose(*args)

    def stop(self, service: str) -> None:
        """End it with SIGTERM, and wait."""
        self._compose("stop", "-t", "40", service)

    def start(self, service: str) -> None:
        """Start what was stopped."""
        self._compose("start", service)

    def read(self, service: str, path: str) -> bytes:
        """A file in a running container."""
        tool = (
            [*self._check, "exec", *self._files] if self._check else ["docker", "compose", *self._files, "exec", "-T"]
        )
        return base64.b64decode(run([*tool, service, "base64", path]))

    def containers(self, service: str = "") -> list[str]:
        """The ids of the containers there are, running or not; of one service, those that run."""
        only = ["-q", "--filter", f"label=com.docker.compose.service={service}"] if service else ["-aq"]
        return self._listed("ps", *only)

    def kill(self, container: str) -> None:
        """End it with SIGKILL: it can clean up nothing."""
        self._engine("kill", "--signal", "KILL", container)

    def traces(self) -> dict[str, list[str]]:
        """What is left of the project: containers, networks, volumes."""
        kinds = {"containers": ("ps", "-aq"), "networks": ("network", "ls", "-q"), "volumes": ("volume", "ls", "-q")}
        return {kind: left for kind, args in kinds.items() if (left := self._listed(*args))}

    def _listed(self, *args: str) -> list[str]:
        label = "io.podman.compose.project" if self._check else "com.docker.compose.project"
        return self._engine(*args, "--filter", f"label={label}={self.project}").split()

    def _compose(self, *args: str) -> None:
        tool = [*self._check, "compose", *self._files] if self._check else ["docker", "compose", *self._files]
        run([*tool, *args])

    def _engine(self, *args: str) -> str:
        return run([*self._check, "podman", *args] if self._check else ["docker", *args])


def run(command: Sequence[str], *, seconds: float = 300, quiet: bool = True) -> str:
    """What it prints on stdout; shown at once where not `quiet`.

    Raises:
        Failed: its exit code is not 0, or it takes longer.
    """
    try:
        done = subprocess.run(command, capture_output=quiet, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Failed(f"`{shlex.join(command)}` takes more than {seconds:.0f} s") from None
    if done.returncode:
        said = "\n".join(((done.stdout or "") + (done.stderr or "")).splitlines()[-20:])
        raise Failed(f"`{shlex.join(command)}` ends with {done.returncode}\n{said}")
    return done.stdout or ""


def eventually(what: str, ask: Callable[[], T], *, seconds: float = 90) -> T:
    """What `ask` gives, once that is true.

    Raises:
        Failed: it was not in all that time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            found, why = ask(), ""
        except OSError as error:
            found, why = None, f": {error}"
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:.0f} s: {what}{why or f', found {found!r}'}")
        time.sleep(1)


class Prometheus:
    """Asks a Prometheus on this machine."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query?query="

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that the query gives."""
        with urllib.request.urlopen(self._url + urllib.parse.quote(query), timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def value(self, query: str) -> float:
        """Of a query that gives one number; 0 where it gives none."""
        return sum(value for _, value in self.ask(query))
