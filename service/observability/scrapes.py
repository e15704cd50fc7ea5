"""The text of /metrics, built at most once a second, however many ask for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

SCRAPE_SECONDS = 1.0
_PAUSE_S = 0.1  # before a text is given again, so that who asks in a loop takes no time from the forecasts

Encoder = Callable[[CollectorRegistry], bytes]


class Scrapes:
    """Keeps the last text of each format. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._lock = threading.Lock()
        self._built: dict[str, tuple[float, bytes]] = {}  # by content type

    def text(self, content_type: str, encode: Encoder) -> bytes:
        """The metrics, at most a second old; waits 0.1 s where they were built before."""
        found = self._recent(content_type)
        if found is not None:
            time.sleep(_PAUSE_S)
            return found
        with self._lock:
            found = self._recent(content_type)  # another thread may have built it meanwhile
            if found is None:
                found = encode(self._registry)
                self._built[content_type] = self._clock(), found
            return found

    def _recent(self, content_type: str) -> bytes | None:
        built = self._built.get(content_type)
        return built[1] if built is not None and self._clock() - built[0] < SCRAPE_SECONDS else None
