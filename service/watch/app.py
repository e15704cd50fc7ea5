"""The page's HTTP application: its files, the search, the history of a series, and the stream of updates."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tidecast.service.watch import assets
from tidecast.service.watch.access import LIVEZ, Guard
from tidecast.service.watch.fleet import Fleet
from tidecast.service.watch.store import Store
from tidecast.service.watch.updates import Choice, Subscription, full_content

MAX_STREAMS = 32  # viewers at once
FULL_TURN_S = 10.0  # beyond the limit, a new viewer takes the place of the oldest, once that has been there for so long
MAX_FOUND = 100
MAX_NAME = 1024  # characters
POLL_S = 0.1  # how often a viewer's updates are looked for
STATUS_S = 1.0

_json = msgspec.json.Encoder().encode


class Page:
    """The ASGI application.

    Args:
        status: returns what the tiles show; called often, from the server's thread.
        about: what never changes: topics, bootstrap servers, version.
        password, hosts: see `Guard`.
    """

    def __init__(
        self,
        store: Store,
        status: Callable[[], dict[str, Any]],
        about: dict[str, Any],
        *,
        password: str = "",
        hosts: Collection[str] | None = None,
    ) -> None:
        self._store, self._status, self._about = store, status, about
        self._files, self._fleet = assets.load(), Fleet(store)
        self._streams: dict[object, float] = {}  # -> when each began, the oldest first
        self.closing = threading.Event()  # set = all streams end
        routes = [
            Route("/", self._index),
            Route("/static/{name}", self._static),
            Route("/api/about", self._get_about),
            Route("/api/series", self._search),
            Route("/api/fleet", self._rows),
            Route("/api/cells", self._cells),
            Route("/api/history", self._history),
            Route("/api/stream", self._stream),
            Route(LIVEZ, lambda request: PlainTextResponse("ok\n")),
        ]
        guard = Middleware(Guard, password=password, hosts=hosts)
        self.app = Starlette(routes=routes, middleware=[guard, Middleware(GZipMiddleware, minimum_size=1024)])

    @property
    def streams(self) -> int:
        """How many viewers are connected."""
        return len(self._streams)

    async def _index(self, request: Request) -> Response:
        return self._file("index.html")

    async def _static(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            return PlainTextResponse("no such file\n", 404)
        content, kind = self._files[name]
        return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-cache"})

    async def _get_about(self, request: Request) -> Response:
        return _answer(self._about)

    async def _rows(self, request: Request) -> Response:
        words, group = _filter(request)
        return _answer(self._fleet.rows(words, group))

    async def _cells(self, request: Request) -> Response:
        version = request.query_params.get("version", "")
        words, group = _filter(request)
        known = int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else -1
        return _answer(self._fleet.cells(words, group, known))

    async def _search(self, request: Request) -> Response:
        text = request.query_params.get("q", "")
        if len(text) > MAX_NAME:
            return PlainTextResponse(f"a series name is at most {MAX_NAME} characters long\n", 400)
        count, names = self._store.search(text, MAX_FOUND)
        return _answer({"count": count, "known": len(self._store), "names": names})

    async def _history(self, request: Request) -> Response:
        choice = _choice(request)
        with self._store.lock:
            one = None if choice is None else self._store.get(choice.series)
            if choice is None or one is None:
                return PlainTextResponse("no such series\n", 404)
            return _answer(full_content(one, choice))

    async def _stream(self, request: Request) -> Response:
        choice = _choice(request)
        if request.method == "HEAD":  # takes nobody's place
            return Response(headers={"Content-Type": "text/event-stream"})
        if not self._has_room():
            return PlainTextResponse(f"{MAX_STREAMS} viewers are connected already\n", 503, {"Retry-After": "10"})
        # An event stream is not compressed: each event must be sent at once.
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(choice), headers=headers)

    def _has_room(self) -> bool:
        """Whether one more viewer may connect. A page that reads connects again by itself; others stay away."""
        if len(self._streams) < MAX_STREAMS:
            return True
        oldest = next(iter(self._streams.items()), None)
        if oldest is None or time.monotonic() - oldest[1] < FULL_TURN_S:
            return False
        del self._streams[oldest[0]]  # it ends at its next turn
        return True

    async def _events(self, choice: Choice | None) -> AsyncIterator[bytes]:
        subscription = Subscription(self._store, choice) if choice is not None else None
        sent_status = 0.0
        this = object()
        self._streams[this] = time.monotonic()
        try:
            while this in self._streams and not self.closing.is_set():
                if subscription is not None and (event := subscription.next_event()) is not None:
                    yield _event(*event)
                if time.monotonic() - sent_status >= STATUS_S:
                    sent_status = time.monotonic()
                    yield _event("status", self._status())
                await asyncio.sleep(POLL_S)
        finally:
            self._streams.pop(this, None)


def _filter(request: Request) -> tuple[str, str]:
    """Words that names must hold, and what they must begin with."""
    asked = request.query_params
    return asked.get("q", "")[:MAX_NAME], asked.get("group", "")[:MAX_NAME]


def _choice(request: Request) -> Choice | None:
    asked = request.query_params
    series, target, ahead = asked.get("series", ""), asked.get("target", ""), asked.get("ahead", "1")
    if not series or max(len(series), len(target)) > MAX_NAME:
        return None
    return Choice(series, target, int(ahead) if ahead.isascii() and ahead.isdecimal() and len(ahead) < 6 else 1)


def _answer(value: object) -> Response:
    return Response(_json(value), media_type="application/json")


def _event(kind: str, value: object) -> bytes:
    # JSON has no bare line breaks, so one data line is enough.
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _json(value))
