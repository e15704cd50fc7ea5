"""The live page with a large fleet, in a real Chromium: how soon it is there, how smooth it is, what the server takes.

    python benchmarks/watch_page.py [--series 20000] [--rate 5000] [--seconds 10] [--runs 3]

A process serves the page and reads records as `tidecast watch` does, but for Kafka: it decodes readings and forecasts
of 12 steps and keeps them, `--rate` of each a second. The browser opens the page once the store holds all series.
"First paint" is the browser's own figure; "rows" is when the first series can be read, from the start of the load.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tests' server


def serve(series: int, rate: int) -> None:
    """The server's process: says its address, then feeds until its input ends."""
    from tests.support.watching import HOUR, START, Served, forecast_value
    from tidecast.service.config.settings import Settings
    from tidecast.service.watch.messages import decode_forecast, decode_measurement
    from tidecast.service.watch.store import Store

    config = Settings()
    served = Served(
        Store(max_series=max(series, config.watch_series), points=config.watch_points,
              max_bytes=config.watch_memory_bytes),
        hosts=["127.0.0.1"],
    )  # fmt: skip
    names = [f"site{n % 20}/line{n // 20 % 10}/machine-{n:05}" for n in range(series)]

    def round_of(i: int, pace: float) -> None:
        score = {f"surprise_temp_{lead}": 0.5 for lead in (1, 12) if i >= lead}
        value = forecast_value(i, score=score)
        began = time.monotonic()
        for n, name in enumerate(names):
            measured, made = (
                decode_measurement(b'{"ts":%d,"temp":%d.5}' % (START + i * HOUR, n % 90)),
                decode_forecast(value),
            )
            assert measured is not None
            assert made is not None
            served.store.add_reading(name, measured, 0.0)
            served.store.add_forecast(name, made[0], 0.0)
            if pace and n % 50 == 0:
                time.sleep(max(0.0, began + n / pace - time.monotonic()))

    for i in range(20):
        round_of(i, 0)
    print(served.url, flush=True)

    def feed() -> None:
        i = 20
        while True:
            round_of(i, rate)
            i += 1

    threading.Thread(target=feed, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def measure(browser: Any, url: str, seconds: float) -> dict[str, float]:
    """One load of the page, and so many seconds of it."""
    from tests.support.watching import FRAMES

    page = browser.new_page(viewport={"width": 1280, "height": 820})
    page.goto(url)
    page.locator("#rows li").first.wait_for(timeout=60_000)
    rows = page.evaluate("performance.now()")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.evaluate(FRAMES)
    page.wait_for_timeout(seconds * 1000)
    frames = sorted(page.evaluate("window.frames_"))
    page.close()
    return {"first paint, ms": paint, "rows, ms": rows, "frame p50, ms": frames[len(frames) // 2],
            "frame p99, ms": frames[int(len(frames) * 0.99)], "longest frame, ms": frames[-1]}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=20_000)
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.series, given.rate)
        return
    from playwright.sync_api import sync_playwright  # not in the server's process, whose memory is measured

    words = ["--series", str(given.series), "--rate", str(given.rate), "--serve"]
    server = subprocess.Popen(
        [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        found = [measure(browser, url, given.seconds) for _ in range(given.runs)]
        browser.close()
    memory = psutil.Process(server.pid).memory_info().rss / 2**20
    server.communicate()
    print(f"\n{given.series:,} series, {given.rate:,} readings/s; median of {given.runs} loads\n\n| | |\n|---|---|")
    for name in found[0]:
        print(f"| {name} | {statistics.median(one[name] for one in found):,.0f} |")
    print(f"| server's memory, MB | {memory:,.0f} |")


if __name__ == "__main__":
    main()
