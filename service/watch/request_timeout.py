"""Closes connections whose request does not arrive in time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # for a complete request, from when the connection is ready for it


class TimeoutProtocol(H11Protocol):
    """uvicorn's connection with a time limit; by itself, uvicorn waits for ever for a first or incomplete request."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request."""
        super().connection_made(transport)
        self._restart_timer()

    def on_response_complete(self) -> None:
        """Start the time limit of the next request."""
        self._restart_timer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._restart_timer(again=False)
        super().connection_lost(exc)

    def _restart_timer(self, *, again: bool = True) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(REQUEST_S, self._close_if_idle) if again else None

    def _close_if_idle(self) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:  # else it is being answered; a stream has no end
            self.transport.close()
