"""Membership of a group on kafka-python.

kafka-python runs rebalance callbacks on its I/O thread, where a callback that commits would wait for itself. Here they
run on the caller's thread, as the port promises: a group's polls go through a thread of their own, which hands each
callback back to the caller and lets the library's event loop (and so the heartbeats) run on meanwhile.

That thread also sees a join through to its end, over as many polls of the caller as it takes, for the library (3.0.12)
loses a join that ends between two of its polls, in two ways:
  - It throws the result away and joins again, and so two members that poll briefly may go on joining for ever.
  - It joins because the topic's partitions have changed (to a leader, they also have just after its first join), and
    takes the end of that join as proof that nothing is left to do: `need_rejoin` asks only for reasons to begin a join,
    not whether one is under way. The member is then out of the group for good, as its heartbeats stay switched off;
    it reads on what it had or reads nothing, and at the end of its session the others take over.

And it tells of a lost membership only as it begins to join. Where the loss comes to light during a join (a process that
was stopped in the midst of one), the member would come back with the partitions it had, as if nobody had had them in
between, and go on from its old positions. Here such a join begins anew.

Of two processes with one name (`group.instance.id`) Kafka lets the one that joined later have the place, and says so to
the other's heartbeats, of which the library makes a line in the log: the member reads on, without a place in the group.
Here the next poll raises. And a member that has not polled for too long forgets who it was, and on its return would
take the name from the process that has it meanwhile; here it returns as whom it was, and Kafka tells it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, cast

from kafka import AsyncConsumerRebalanceListener, TopicPartition, errors
from kafka.future import Future
from kafka.protocol.consumer import HeartbeatRequest

from tidecast.service.broker.kafka_python.client import poll
from tidecast.service.errors import BrokerError

_ASK_AGAIN_S = 0.1
_NEWCOMER = 3  # first joins that may be refused for the name's sake
_SLICE_MS = 500  # so long may a wish to leave go unnoticed while the group is joined


class _JoinFirstError(Exception):
    """A poll of the library wants to join."""


class KafkaPythonMember:
    """One consumer's part in its group. For one caller's thread.

    Args:
        kafka: a KafkaConsumer with a group.
        on_assigned: called inside `poll` and `leave`, with partitions; once with none where nothing is left to have.
        on_revoked: likewise.
    """

    def __init__(
        self, kafka: Any, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        self._kafka, self._coordinator = kafka, kafka._coordinator
        self._caller = _Caller(kafka._net, on_assigned, on_revoked)
        self._leaving = False
        # What the library's polls join with. They would give up in the midst of a join; see `_join`.
        self._coordinator.ensure_active_group = _join_first
        self._reset, self._coordinator.reset_generation = self._coordinator.reset_generation, self._lost
        self._replaced: errors.FencedInstanceIdError | None = None
        self._newcomer = 0  # how often a first join was refused for the name's sake
        self._heard = self._coordinator._handle_heartbeat_response
        self._coordinator._handle_heartbeat_response = self._hear
        if not self._coordinator.is_dynamic_member():
            self._coordinator.maybe_leave_group_async = self._step_back

    def subscribe(self, topic: str) -> None:
        """Begin to be a member; the joining itself is done by `poll`."""
        self._kafka.subscribe([topic], listener=_Listener(self._caller, self._coordinator))

    def poll(self, timeout_s: float, max_records: int, grace_s: float) -> dict[TopicPartition, Any] | None:
        """What has arrived by partition; None where the group is still settling.

        Raises:
            KafkaTimeoutError: the library's poll did not return within `timeout_s` and `grace_s`.
            FencedInstanceIdError: another process has this member's name.
        """
        caller = self._caller
        deadline = time.monotonic() + timeout_s
        while True:
            self.check()
            left = max(0.0, deadline - time.monotonic())
            if not caller.busy:
                caller.start(self._join if self._unsettled() else partial(self._fetch, int(left * 1_000), max_records))
            joining = caller.doing == self._join
            if not caller.wait(left if joining else left + grace_s):
                if joining:
                    return None
                raise errors.KafkaTimeoutError
            if caller.value is not None:
                if not caller.told and self._coordinator.generation_if_stable() is not None:
                    caller.told = True  # the library has a word only for those who get something
                    caller.on_assigned(set())
                return cast(dict[TopicPartition, Any], caller.value)

    def leave(self, leave: Callable[[], None], limit_s: float) -> None:
        """Give up what is under way and call `leave`, which closes the library's consumer; the last call."""
        if self._leaving:
            return  # the thread that would do it is gone
        self._leaving = True
        try:
            if self._caller.busy:
                with contextlib.suppress(BrokerError, errors.KafkaError):  # what went wrong there is over now
                    self._caller.wait(limit_s)
            self._caller.start(leave)
            self._caller.wait(limit_s)
        finally:
            self._caller.end()

    def _fetch(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, Any] | None:
        """In the caller's other thread: what has arrived, None where the group has to be joined first."""
        try:
            return poll(self._kafka, timeout_ms, max_records)
        except _JoinFirstError:
            return None

    def _lost(self, *member_id: str, **named: str) -> None:
        """On the library's event loop: this member is out of the group, so the join begins with telling of that."""
        self._reset(*member_id, **named)
        self._coordinator.rejoining = False

    def check(self) -> None:
        """Raise the FencedInstanceIdError of which a heartbeat was told, if one was."""
        if self._replaced is not None:
            raise self._replaced

    def verify_instance(self, timeout_s: float) -> None:
        """Ask the coordinator whether this member's name is still its own; FencedInstanceIdError where it is not."""
        self.check()
        self._kafka._net.run(self._ask_for_our_place, time.monotonic() + timeout_s)

    async def _ask_for_our_place(self, deadline: float) -> None:
        # A heartbeat whose answer changes nothing but this: a join may be under way.
        coordinator, manager = self._coordinator, self._coordinator._manager
        while True:
            left_ms = (deadline - time.monotonic()) * 1_000
            if left_ms <= 0 or not await coordinator.ensure_coordinator_ready_async(timeout_ms=left_ms):
                raise errors.KafkaTimeoutError
            us = coordinator._generation
            if not us.has_member_id():
                return  # Kafka did not know us any more: nobody has the name, and a join takes it
            asked = HeartbeatRequest(
                group_id=coordinator.group_id,
                generation_id=us.generation_id,
                member_id=us.member_id,
                group_instance_id=coordinator.group_instance_id,
            )
            try:
                response = await manager.wait_for(manager.send(asked, node_id=coordinator.coordinator_id), left_ms)
                error = errors.for_code(response.error_code)()
            except errors.RetriableError as failed:
                error = failed
            if isinstance(error, errors.FencedInstanceIdError):
                self._replaced = error
                raise error
            if isinstance(error, errors.RebalanceInProgressError) or not isinstance(error, errors.RetriableError):
                return
            coordinator.coordinator_dead(error)
            await self._kafka._net.sleep(_ASK_AGAIN_S)

    def _hear(self, response: Any, sent: float) -> None:
        """On the library's event loop: a heartbeat's answer."""
        try:
            self._heard(response, sent)
        except errors.FencedInstanceIdError as error:
            self._replaced = error
            raise

    async def _step_back(self, reason: str | None = None, timeout_ms: float | None = None) -> None:
        """On the library's event loop: a named member leaves without a word to Kafka, but knows who it was."""
        self._lost(member_id=self._coordinator._generation.member_id)

    def _unsettled(self) -> bool:
        """Whether there is a reason to join, or a join that has begun and whose result is not in force."""
        return bool(self._coordinator.rejoining or self._coordinator.need_rejoin())

    def _join(self) -> None:
        """In the caller's other thread: until the group has settled, or this member leaves."""
        self._kafka._net.run(self._join_in_slices)

    async def _join_in_slices(self) -> None:
        # On the library's event loop, so that no join can end unseen between two slices.
        while not self._leaving and self._unsettled():
            if self._coordinator.rejoining:
                self._coordinator.request_rejoin()  # taken back by the library once the result is in force
            try:
                await self._coordinator.ensure_active_group_async(timeout_ms=_SLICE_MS)
            except errors.FencedInstanceIdError:
                # Before a first join has ended, nobody can have our place: a Kafka that was killed in the midst of that
                # join has forgotten whom it let in. So we come as a newcomer again, though not for ever: a namesake may
                # be doing the same.
                self._newcomer += 1
                if self._newcomer > _NEWCOMER:
                    raise
                self._lost()
        if self._coordinator.generation_if_stable() is not None:
            self._newcomer = _NEWCOMER


def _join_first(timeout_ms: float | None = None) -> bool:
    raise _JoinFirstError


class _Caller:
    """Runs one library call at a time in a thread, and on the caller's thread the callbacks that it leads to."""

    def __init__(
        self, net: Any, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        self.on_assigned, self.on_revoked = on_assigned, on_revoked
        self.told = False  # of a first share of the partitions, be it empty
        self.doing: Callable[[], Any] | None = None  # the latest call
        self.busy = False
        self.value: Any = None  # of the latest call, once it has ended
        self._net = net
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        # ("done", value), ("failed", error) or ("callback", (function, partitions, future))
        self._events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        threading.Thread(target=self._work, name="kafka-poll", daemon=True).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._events.put(("done", call()))
            except BaseException as error:
                self._events.put(("failed", error))

    def start(self, call: Callable[[], Any]) -> None:
        """Begin `call`; `wait` for it before the next."""
        self.doing, self.busy, self.value = call, True, None
        self._calls.put(call)

    def wait(self, seconds: float) -> bool:
        """Wait for the call to end, True if it did; raises what it or a callback raised."""
        deadline = time.monotonic() + seconds
        while self.busy:
            try:
                kind, what = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return False
            if kind == "callback":
                callback, partitions, future = what
                try:
                    callback(partitions)
                finally:
                    self._net.call_soon_threadsafe(lambda done=future: done.success(None))
                continue
            self.busy = False
            if kind == "failed":
                raise what
            self.value = what
        return True

    async def call_back(self, callback: Callable[[set[int]], None], tps: Collection[TopicPartition]) -> None:
        """On the library's event loop: have the caller's thread do it, and wait."""
        if tps:
            self.told = True
            future = Future()
            self._events.put(("callback", (callback, {tp.partition for tp in tps}, future)))
            await future

    def end(self) -> None:
        """Let the thread go."""
        self._calls.put(None)


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, caller: _Caller, coordinator: Any) -> None:
        self._caller, self._coordinator = caller, coordinator

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._caller.call_back(self._caller.on_revoked, revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        # The library (3.0.12) keeps an OffsetFetch that a poll did not wait for, and would use its answer now, although
        # another member may have committed since: the member would read records again that are committed.
        self._coordinator._offset_fetch_futures.clear()
        await self._caller.call_back(self._caller.on_assigned, assigned)
