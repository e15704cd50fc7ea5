"""The live page's server without Kafka, where a test puts records into its store as the reader does; and with it."""

import http.client
import json
import math
import socket
import threading
import time

import msgspec

from tests.support.worker_process import WorkerProcess
from tidecast.service.watch.app import Page
from tidecast.service.watch.messages import decode_forecast, decode_measurement
from tidecast.service.watch.server import server_of
from tidecast.service.watch.store import Store

HOUR = 3_600_000
START = 1_700_000_000_000 // HOUR * HOUR
HORIZON = 12
PATIENCE = 20.0
# For the browser: how long each frame takes, ms, in window.frames_.
FRAMES = """() => { window.frames_ = []; let last = performance.now();
  const tick = (now) => { window.frames_.push(now - last); last = now; requestAnimationFrame(tick); };
  requestAnimationFrame(tick); }"""

STATUS = {
    "readings_per_s": 4.2, "forecasts_per_s": 4.2, "waiting": 2, "waiting_s": 0.3, "readings": 10, "forecasts": 10,
    "kafka": "live", "reason": "", "series": 0, "skipped": 0, "refused": 0,
}  # fmt: skip
ABOUT = {"version": "1", "input_topic": "readings", "output_topic": "forecasts", "bootstrap_servers": "127.0.0.1:9092"}


def level(i):
    """What happens at step `i`."""
    return 50 + 10 * math.sin(i / 12) + math.sin(i * 7) / 2


def reading(i, **fields):
    return decode_measurement(msgspec.json.encode({"ts": START + i * HOUR, **(fields or {"temp": level(i)})}))


def forecast_value(
    i, *, targets=("temp",), horizon=HORIZON, step_ms=HOUR, warm=True, score=None, source="readings-0-0"
):
    ahead = [level(i + k) for k in range(1, horizon + 1)]
    away = {"p5": -2, "p25": -0.8, "p50": 0, "p75": 0.8, "p95": 2}
    numbers = {name: [v + d * (1 + k / horizon) for k, v in enumerate(ahead)] for name, d in away.items()}
    usual = {"absolute_error_temp_1": 1.0, "naive_error_temp_1": 2.0, "inside_temp_1": float(i % 10 > 0)}
    return msgspec.json.encode(
        {
            "ts": START + i * HOUR, "step_ms": step_ms, "model": "test@1", "warm": warm, "source": source,
            "targets": dict.fromkeys(targets, numbers), "score": usual if score is None else score,
        }
    )  # fmt: skip


def forecast(i, **more):
    return decode_forecast(forecast_value(i, **more))[0]


def surprised(store, name, steps, offset=lambda i: 0.0, *, skip=(), warm=10):
    """As `fill`, with readings that are `offset` away from what was forecast, and the model's surprises at that."""
    for i in steps:
        if i in skip:
            continue
        away = abs(offset(i))
        score = {f"surprise_temp_{lead}": away / (2 * (1 + lead / HORIZON)) for lead in (1, HORIZON) if i >= lead}
        store.add_reading(name, reading(i, temp=level(i) + offset(i)), 0.0)
        store.add_forecast(name, forecast(i, score=score, warm=i >= warm), 0.0)


def fill(store, name, steps, **more):
    """So many steps of one series, each with its forecast."""
    for i in steps:
        store.add_reading(name, reading(i), 0.0)
        store.add_forecast(name, forecast(i, **more), 0.0)


class Served:
    """The page on a loopback port of its own, which it keeps when it is started again."""

    def __init__(self, store=None, **options):
        # An empty store has the length 0.
        self.store = Store(max_series=20_000, points=720, max_bytes=256 << 20) if store is None else store
        self.state = dict(STATUS)
        self._options = options
        self.port = 0
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def status(self):
        return {**self.state, "series": len(self.store)}

    def start(self):
        self.page = Page(self.store, self.status, ABOUT, **self._options)
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self.server = server_of(self.page)
        self.thread = threading.Thread(target=self.server.run, args=([self._socket],))
        self.thread.start()
        deadline = time.monotonic() + PATIENCE
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.005)

    def stop(self):
        self.page.closing.set()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        self._socket.close()

    def get(self, path, method="GET", headers=None, body=None):
        """(status, headers, body) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        content = response.read().decode()
        connection.close()
        return response.status, response.headers, content

    def json(self, path):
        code, _, content = self.get(path)
        assert code == 200, content
        return json.loads(content)

    def events(self, path, count):
        """The first `count` events of a stream: (kind, content)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        found = []
        while len(found) < count:
            kind = response.readline().decode().removeprefix("event: ").strip()
            found.append((kind, json.loads(response.readline().decode().removeprefix("data: "))))
            response.readline()
        connection.close()
        return found


class Watch(WorkerProcess):
    """`tidecast watch` as a process."""

    program = ("-m", "tidecast", "watch")

    def json(self, path):
        code, body = self.get(path)
        return json.loads(body) if code == 200 else None

    def until(self, what, test):
        return self.wait_for(what, test)

    def status(self):
        """The next status of the stream."""
        host = self.log.split("url=http://")[1].split()[0]
        connection = http.client.HTTPConnection(host, timeout=PATIENCE)
        connection.request("GET", "/api/stream")
        response = connection.getresponse()
        while not (line := response.readline()).startswith(b"data: "):
            assert line
        connection.close()
        return json.loads(line[6:])
