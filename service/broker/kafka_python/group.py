"""Membership of a group on kafka-python.

kafka-python runs rebalance callbacks on its I/O thread, where a callback that commits would wait for itself. Here they
run on the caller's thread, as the port promises: a group's polls run in a thread of their own, which hands each
callback to the caller, while the library's event loop (and so the heartbeats) continues.

That thread also runs a join to its end, over as many polls of the caller as it takes, as the library loses a join that
ends between two polls (docs/upstream.md, K10). A membership that is lost during a join is reported (K11). A member with
an instance id keeps its member id, and raises if another process has the instance id (K12). A member that was evicted
says that it owns nothing (K16).
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
_LOOK_AGAIN_S = 0.01
_REQUEST_AGAIN_S = 0.5
_NEWCOMER = 3  # how many first joins may be refused because of the instance id
_SLICE_MS = 500  # how long a request to leave may wait while the group is joined


class _JoinFirstError(Exception):
    """Raised where a poll of the library would join."""


class KafkaPythonMember:
    """One consumer's part in its group. For one caller's thread.

    Args:
        kafka: a KafkaConsumer with a group.
        on_assigned: called inside `poll` and `leave`, with partitions; once with none if no partition is left.
        on_revoked: likewise.
    """

    def __init__(
        self, kafka: Any, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        self._kafka, self._coordinator = kafka, kafka._coordinator
        self._caller = _Caller(kafka._net, on_assigned, on_revoked)
        self._leaving = False
        # The library's polls would join by this, and give up during a join; see `_join`.
        self._coordinator.ensure_active_group = _join_first
        self._reset, self._coordinator.reset_generation = self._coordinator.reset_generation, self._lost
        self._protocols, self._coordinator.group_protocols = self._coordinator.group_protocols, self._say_what_we_own
        self._replaced: errors.FencedInstanceIdError | None = None
        self._newcomer = 0  # how often a first join was refused because of the instance id
        self._heard = self._coordinator._handle_heartbeat_response
        self._coordinator._handle_heartbeat_response = self._hear
        if not self._coordinator.is_dynamic_member():
            self._coordinator.maybe_leave_group_async = self._step_back

    def subscribe(self, topic: str) -> None:
        """Subscribe; `poll` joins the group."""
        self._kafka.subscribe([topic], listener=_Listener(self._caller, self._coordinator))

    def wait_for_partitions(self, topic: str, timeout_s: float) -> None:
        """Wait until the library's group knows the partitions of the topic; see docs/upstream.md, K14.

        Raises:
            KafkaTimeoutError: it does not within `timeout_s`.
        """
        cluster, asked_at = self._kafka._client.cluster, time.monotonic()
        deadline = asked_at + timeout_s
        while not self._coordinator._metadata_snapshot.get(topic):
            now = time.monotonic()
            if now > deadline:
                raise errors.KafkaTimeoutError
            if now > asked_at + _REQUEST_AGAIN_S:
                cluster.request_update()
                asked_at = now
            time.sleep(_LOOK_AGAIN_S)

    def poll(self, timeout_s: float, max_records: int, grace_s: float) -> dict[TopicPartition, Any] | None:
        """What has arrived by partition; None while the group rebalances.

        Raises:
            KafkaTimeoutError: the library's poll did not return within `timeout_s` and `grace_s`.
            FencedInstanceIdError: another process has this member's instance id.
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
                if not caller.notified and self._coordinator.generation_if_stable() is not None:
                    caller.notified = True  # the library calls back only for partitions
                    caller.on_assigned(set())
                return cast(dict[TopicPartition, Any], caller.value)

    def leave(self, leave: Callable[[], None], limit_s: float) -> None:
        """End the call that runs, then call `leave`, which closes the library's consumer; the last call."""
        if self._leaving:
            return  # the thread that would do it is gone
        self._leaving = True
        try:
            if self._caller.busy:
                with contextlib.suppress(BrokerError, errors.KafkaError):  # its error does not matter any more
                    self._caller.wait(limit_s)
            self._caller.start(leave)
            self._caller.wait(limit_s)
        finally:
            self._caller.end()

    def _fetch(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, Any] | None:
        """In the poll thread: what has arrived; None if the group must be joined first."""
        try:
            return poll(self._kafka, timeout_ms, max_records)
        except _JoinFirstError:
            return None

    def _lost(self, *member_id: str, **named: str) -> None:
        """On the library's event loop: this member was evicted, so the next join begins with `on_revoked`."""
        self._reset(*member_id, **named)
        self._coordinator.rejoining = False

    def _say_what_we_own(self) -> Any:
        """On the library's event loop: what a join sends. The library would claim what it has lost."""
        for assignor in self._coordinator._assignors.values():
            assignor.member_assignment = sorted(self._kafka.assignment())
        return self._protocols()

    def check(self) -> None:
        """Raise the FencedInstanceIdError that a heartbeat received, if one did."""
        if self._replaced is not None:
            raise self._replaced

    def verify_instance(self, timeout_s: float) -> None:
        """Ask the coordinator whether this member still has its instance id; FencedInstanceIdError if not."""
        self.check()
        self._kafka._net.run(self._ask_for_our_place, time.monotonic() + timeout_s)

    async def _ask_for_our_place(self, deadline: float) -> None:
        # A heartbeat that changes no state of the library: a join may be under way.
        coordinator, manager = self._coordinator, self._coordinator._manager
        while True:
            left_ms = (deadline - time.monotonic()) * 1_000
            if left_ms <= 0 or not await coordinator.ensure_coordinator_ready_async(timeout_ms=left_ms):
                raise errors.KafkaTimeoutError
            us = coordinator._generation
            if not us.has_member_id():
                return  # evicted: nobody has the instance id, and a join takes it
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
        """On the library's event loop: a static member leaves without a request, and keeps its member id."""
        self._lost(member_id=self._coordinator._generation.member_id)

    def _unsettled(self) -> bool:
        """Whether there is a reason to join, or a join that has not ended."""
        return bool(self._coordinator.rejoining or self._coordinator.need_rejoin())

    def _join(self) -> None:
        """In the poll thread: until the group has rebalanced, or this member leaves."""
        self._kafka._net.run(self._join_in_slices)

    async def _join_in_slices(self) -> None:
        # On the library's event loop, so that no join can end unnoticed between two slices.
        while not self._leaving and self._unsettled():
            if self._coordinator.rejoining:
                self._coordinator.request_rejoin()  # reset by the library when the join has ended
            try:
                await self._coordinator.ensure_active_group_async(timeout_ms=_SLICE_MS)
            except errors.FencedInstanceIdError:
                # Before a first join has ended, nobody can have fenced us: a Kafka that was killed during that join has
                # forgotten the member. So we join as new again, a few times: another process with the same instance id
                # may be doing the same.
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
        self.notified = False  # of a first assignment, even an empty one
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
            self.notified = True
            future = Future()
            self._events.put(("callback", (callback, {tp.partition for tp in tps}, future)))
            await future

    def end(self) -> None:
        """End the thread."""
        self._calls.put(None)


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, caller: _Caller, coordinator: Any) -> None:
        self._caller, self._coordinator = caller, coordinator

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._caller.call_back(self._caller.on_revoked, revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        # The library would use the answer to an OffsetFetch from before: docs/upstream.md, K9.
        self._coordinator._offset_fetch_futures.clear()
        await self._caller.call_back(self._caller.on_assigned, assigned)
