"""The whole suite several times, while other processes keep every core busy: `python -m tests.stress --rounds 5`.

A test that fails here but not on a quiet machine waits for a time, not for an event, or shows a race in the code.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(1_000_000))"


def failed(report: Path) -> list[str]:
    """The tests that failed, as a JUnit report has them."""
    if not report.exists():
        return ["pytest ended without a report"]
    cases = ET.parse(report).iter("testcase")
    return [
        f"{case.get('classname')}::{case.get('name')}" for case in cases if {"failure", "error"} & {e.tag for e in case}
    ]


def main(args: list[str] | None = None) -> int:
    """0 where every round passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--processes", type=int, default=8, help="of pytest at the same time [%(default)s]")
    parser.add_argument("tests", nargs="*", help="files or folders [all]")
    given = parser.parse_args(args)
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    found: Counter[str] = Counter()
    passed = 0
    try:
        for number in range(1, given.rounds + 1):
            with tempfile.TemporaryDirectory() as folder:
                report, log, began = (
                    Path(folder) / "report.xml",
                    ROOT / "build" / f"stress-{number}.log",
                    time.monotonic(),
                )
                log.parent.mkdir(exist_ok=True)
                pytest = [sys.executable, "-m", "pytest", "-q", "-n", str(given.processes), "--dist", "loadfile"]
                pytest += ["--max-worker-restart", "0"]
                with log.open("wb") as out:
                    code = subprocess.run(
                        [*pytest, "--no-loadscope-reorder", f"--junitxml={report}", *given.tests],
                        cwd=ROOT,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        check=False,
                    ).returncode
                names = failed(report) if code else []
            passed += code == 0
            found.update(names)
            said = "passed" if code == 0 else f"exit code {code}, {len(names)} failed, see {log.relative_to(ROOT)}"
            print(f"round {number} of {given.rounds}: {said}, after {time.monotonic() - began:.0f} s", flush=True)
            print(*(f"  {name}\n" for name in names), sep="", end="", flush=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(f"{passed} of {given.rounds} rounds passed")
    print(*(f"{n} times: {name}\n" for name, n in found.most_common()), sep="", end="")
    return 0 if passed == given.rounds else 1


if __name__ == "__main__":
    raise SystemExit(main())
