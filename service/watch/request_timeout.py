"""A connection to the page that says nothing, or too little, does not keep its place."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # for a whole request, from when the connection is free for it


class TimeoutProtocol(H11Protocol):
    """uvicorn's connection, which by itself waits for the first request, and for the rest of any, for ever."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request may come."""
        super().connection_made(transport)
        self._expect()

    def on_response_complete(self) -> None:
        """The next may come."""
        self._expect()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._expect(again=False)
        super().connection_lost(exc)

    def _expect(self, *, again: bool = True) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
        self._overdue = self.loop.call_later(REQUEST_S, self._look) if again else None

    def _look(self) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:  # else it is being answered, which may last: a stream has no end
            self.transport.close()
