"""How kafka-python (3.0.12) gets a response's bytes: a few times less often out of the socket, and with fewer copies.

The library reads 4 kB at a time, for each of which its thread gives the GIL away and has to get it back, and copies a
response four times before it is looked at: that was most of a restore's time. And of a connection that has ended it
throws away what came before the end, which may be Kafka's word that the password is wrong. `install` puts these in the
place of the library's own, for all of its clients in this process.
"""

from __future__ import annotations

import ssl
from typing import Any

import numpy as np
from kafka import errors
from kafka.net import manager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.protocol import parser

_ROOM = 512 << 10  # bytes taken at a time: they stay in the processor's cache until they are in their frame


_NOTHING_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Reading:
    """How a connection of either kind reads; the library's own transport comes behind it."""

    _sock: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._room = _memory(_ROOM)

    def _sock_recv(self) -> tuple[memoryview, BaseException | None]:
        """What has arrived, to be used before the next call; and why there will be no more."""
        size = 0
        try:
            while size < _ROOM:
                more = self._sock.recv_into(self._room[size:])
                if not more:
                    return self._ended(size, errors.KafkaConnectionError("socket disconnected"))
                size += more
        except _NOTHING_YET:
            pass
        except Exception as error:  # the library, too, takes whatever it is for the connection's end
            return self._ended(size, errors.KafkaConnectionError(error))
        return self._room[:size], None

    def _ended(self, size: int, error: BaseException) -> tuple[memoryview, BaseException | None]:
        """The library looks at nothing that comes with an error: what came before goes first, the end is met again."""
        return self._room[:size], None if size else error


class Transport(_Reading, KafkaTCPTransport):  # type: ignore[misc]
    """One connection."""


class TLSTransport(_Reading, KafkaSSLTransport):  # type: ignore[misc]
    """One encrypted connection."""


class Frame:
    """The bytes of one response, or of its length, as they come. What `read` gives of the rest is no copy."""

    def __init__(self, size: int) -> None:
        self._data = _memory(size)
        self._at = 0

    def __len__(self) -> int:
        return len(self._data)

    def tell(self) -> int:
        """Where the next is written or read."""
        return self._at

    def seek(self, at: int) -> None:
        """Write or read from there."""
        self._at = at

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes for which there is room."""
        begin, self._at = self._at, self._at + len(data)
        self._data[begin : self._at] = data

    def read(self, size: int | None = None) -> bytes | memoryview:
        """So many bytes, or all that is left."""
        begin = self._at
        self._at = len(self._data) if size is None else min(begin + size, len(self._data))
        found = self._data[begin : self._at]
        return found if size is None else bytes(found)


def _memory(size: int) -> memoryview:
    """Bytes that take no memory before they are written to; many of them are of few large pages."""
    return np.empty(size, dtype=np.uint8).data


def install() -> None:
    """From now on, what connects reads so."""
    manager.KafkaTCPTransport = Transport
    manager.KafkaSSLTransport = TLSTransport
    parser.KafkaBytes = Frame
