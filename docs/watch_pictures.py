"""The README's pictures of the live page, taken from a running demo by a real Chromium:  python docs/watch_pictures.py

Needs what the tests of the page need: `pip install -e '.[dev,demo]'`, and chromium; and Debian's fonts-inter, whose
letters look like those that most people see. Takes two minutes; the demo's model is trained the first time. Another
folder than docs: python docs/watch_pictures.py build/pictures
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

PICTURES = {  # name -> (width, height, dark or light, what is chosen)
    "watch-desktop": (1280, 820, "light", "#series=JFK&ahead=6"),
    "watch-dark": (1280, 820, "dark", "#series=EWR&ahead=12"),
    "watch-phone": (380, 800, "light", "#series=LGA&ahead=3"),
}
WARM_S = 20.0  # by then the live part is long enough to look at
LARGEST = 200_000  # bytes


def main(folder: Path) -> None:
    """Start the demo, take the pictures, end the demo."""
    folder.mkdir(parents=True, exist_ok=True)
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
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
                args=["--no-sandbox"] if os.geteuid() == 0 else [],
            )
            for name in PICTURES:
                _take(browser, url, name, folder / f"{name}.png")
            browser.close()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.communicate()


def _address(demo: subprocess.Popen[str]) -> str:
    assert demo.stderr is not None
    for line in demo.stderr:
        print(line, end="", file=sys.stderr)
        if found := re.search(r"open (http://\S+)", line):
            return found[1]
    raise SystemExit("the demo ended before its page was there")


def _take(browser: Browser, url: str, name: str, path: Path) -> None:
    width, height, scheme, chosen = PICTURES[name]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{url}/{chosen}")
    page.locator("#chart[data-newest]").wait_for()
    page.wait_for_timeout(3_000)
    page.screenshot(path=path)
    context.close()
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes", file=sys.stderr)
    if size > LARGEST:
        raise SystemExit(f"{path} is larger than {LARGEST:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
