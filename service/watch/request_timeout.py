"""Closes connections whose request does not arrive in time, or whose answer is not read."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # for a complete request, from when the connection is ready for it
UNREAD_S = 10.0  # how long a client may leave unread what no longer fits into the buffers


class TimeoutProtocol(H11Protocol):
    """uvicorn's connection with a time limit; by itself, uvicorn waits for ever for a first or incomplete request."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

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
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the time limit of a client that does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop it."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _restart_timer(self, *, again: bool = True) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(REQUEST_S, self._close_if_idle) if again else None

    def _close_if_idle(self) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:  # else it is being answered; a stream has no end
            self.transport.close()
