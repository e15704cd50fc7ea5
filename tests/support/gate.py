"""A door between Kafka and its clients, which shuts at the very request that a test names: just then Kafka is gone."""

import contextlib
import socket
import threading

_HEAD = 6  # the length of a request, 4 bytes, and what it asks for, 2 bytes


class Gate:
    """Listens on `port`, once it was opened, and hands on to the port on loopback that `inner` tells.

    Shut, it drops all connections and refuses new ones, as the machine of a Kafka that was killed does.
    """

    def __init__(self, inner):
        self._inner = inner
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._shut_at: int | None = None
        self.port = 0
        self.open()

    def open(self):
        """Let all pass."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        with self._lock:
            self._shut_at, self._listener = None, listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut_at(self, api_key):
        """Shut instead of handing on the next request of that kind, by its number in Kafka's protocol."""
        self._shut_at = api_key

    def shut(self):
        """Let nothing pass, until it is opened again."""
        with self._lock:
            listener, self._listener = self._listener, None
            ends, self._ends = self._ends, set()
        if listener is not None:
            ends.add(listener)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    @property
    def is_open(self):
        return self._listener is not None

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                outer, _ = listener.accept()
                try:
                    inner = socket.create_connection(("127.0.0.1", self._inner()))
                except OSError:
                    outer.close()
                    continue
                with self._lock:
                    self._ends |= {outer, inner}
                threading.Thread(target=self._requests, args=(outer, inner), daemon=True).start()
                threading.Thread(target=self._answers, args=(inner, outer), daemon=True).start()

    def _requests(self, client, kafka):
        with contextlib.suppress(OSError), client.makefile("rb") as stream:
            while head := stream.read(_HEAD):
                if int.from_bytes(head[4:]) == self._shut_at:
                    return self.shut()
                kafka.sendall(head + stream.read(int.from_bytes(head[:4]) + 4 - _HEAD))
        self._drop(client, kafka)

    def _answers(self, kafka, client):
        with contextlib.suppress(OSError):
            while answer := kafka.recv(1 << 16):
                client.sendall(answer)
        self._drop(client, kafka)

    def _drop(self, *ends):
        with self._lock:
            self._ends -= set(ends)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class PlainGate(Gate):
    """The same for any server, whose requests it does not know: it is shut by `shut` only."""

    def _requests(self, client, server):
        self._answers(client, server)
