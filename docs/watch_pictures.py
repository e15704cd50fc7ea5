"""The README's pictures of the live page, taken from a running demo by a real Chromium.

Those of the fleet show made-up machines, some of them with a fault. Needs what the tests of the page need:
`pip install -e '.[dev,demo]'`, and chromium; and Debian's fonts-inter, whose letters look like those that most people
see. Run it as `PYTHONPATH=. python docs/watch_pictures.py`. Takes two minutes; the demo's model is trained the first
time. Another folder than docs: PYTHONPATH=. python docs/watch_pictures.py build/pictures
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.support.watching import Served, level, surprised

PICTURES = {  # name -> (width, height, dark or light, what is chosen)
    "watch-desktop": (1280, 820, "light", "#series=JFK&ahead=6"),
    "watch-dark": (1280, 820, "dark", "#series=EWR&ahead=12"),
    "watch-phone": (380, 800, "light", "#series=LGA&ahead=3"),
}
FLEET = {
    "watch-fleet": (1280, 820, "light", ""),
    "watch-fleet-dark": (1280, 820, "dark", "#group=plant2/"),
    "watch-fleet-phone": (380, 800, "light", ""),
}
MACHINES, STEPS = 300, 60
WARM_S = 20.0  # by then the live part is long enough to look at
LARGEST = 200_000  # bytes


def main(folder: Path) -> None:
    """Take the pictures of the fleet; start the demo, take its pictures, end it."""
    folder.mkdir(parents=True, exist_ok=True)
    fleet = made_up_fleet()
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        for name, picture in FLEET.items():
            _take(browser, fleet.url, picture, folder / f"{name}.png", "#rows li")
        browser.close()
    fleet.stop()
    demo = subprocess.Popen(
        [sys.executable, "-m", "tidecast", "demo", "--seconds", "600", "--speed", "10800", *sys.argv[2:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = _address(demo)
        time.sleep(WARM_S)
        with sync_playwright() as playwright:
            browser = chromium(playwright)
            for name, picture in PICTURES.items():
                _take(browser, url, picture, folder / f"{name}.png", "#chart[data-newest]")
            browser.close()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.communicate()


def chromium(playwright: Playwright) -> Browser:
    """A browser without a window."""
    return playwright.chromium.launch(
        executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
        args=["--no-sandbox"] if os.geteuid() == 0 else [],
    )


def made_up_fleet() -> Served:
    """The page of 300 machines in three plants, some of which drift, repeat themselves, are noisy, or are silent."""
    served, rng = Served(hosts=["127.0.0.1"]), random.Random(3)
    faults = {
        16: lambda i: 0.7 * (i - 42), 61: lambda i: -0.5 * (i - 42), 118: lambda i: rng.gauss(0, 4), 200: lambda i: 5.0,
    }  # fmt: skip
    for n in range(MACHINES):
        name = f"plant{1 + n % 3}/line{1 + n // 3 % 4}/machine-{n:03}"

        def away(i: int, n: int = n) -> float:
            if n == 33 and i >= STEPS - 26:
                return 50 - level(i)
            return rng.gauss(0, 0.9) + (faults[n](i) if n in faults and i > 42 else 0)

        surprised(served.store, name, range(STEPS), away, skip=range(48, STEPS) if n == 20 else ())
    return served


def _address(demo: subprocess.Popen[str]) -> str:
    assert demo.stderr is not None
    for line in demo.stderr:
        print(line, end="", file=sys.stderr)
        if found := re.search(r"open (http://\S+)", line):
            return found[1]
    raise SystemExit("the demo ended before its page was there")


def _take(browser: Browser, url: str, picture: tuple[int, int, str, str], path: Path, ready: str) -> None:
    width, height, scheme, chosen = picture
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{url.rstrip('/')}/{chosen}")
    page.locator(ready).first.wait_for()
    page.wait_for_timeout(3_000)
    page.screenshot(path=path)
    context.close()
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes", file=sys.stderr)
    if size > LARGEST:
        raise SystemExit(f"{path} is larger than {LARGEST:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
