"""What is emitted and not yet committed, the commit itself, and what follows when it does not come about."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial

from tidecast.service.broker.port import Broker, Consumer
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, Fenced, PutOut, Replaced
from tidecast.service.observability.liveness import SAY_SECONDS
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.pipeline import BatchResult
from tidecast.service.worker.delivery import AtLeastOnce, Delivery, ExactlyOnce
from tidecast.service.worker.served_models import ServedModels

log = logging.getLogger("tidecast.worker")

_RETRY_SECONDS = 1.0  # between two tries to commit
_IDLE_FLUSH_SECONDS = 1.0  # between two looks at what states are due while nothing arrives

# So often fenced within so long, though the group knows us by our name: somebody outside of it has our transactional
# id. A pause beyond the session fences once or twice, and so does a namesake, until it hears that we are the newer one.
_DUEL, _DUEL_SECONDS = 5, 60.0

Waiting = Callable[[float], AbstractContextManager[None]]


class Committer:
    """Commits for one worker, on its thread.

    Args:
        settings: what is in force.
        models: whose states are due.
        metrics: to count transactions.
        clock: seconds, monotonic.
        waiting: a context in which the worker waits for Kafka, so long at the most, without being stalled.
    """

    def __init__(
        self,
        settings: Settings,
        models: ServedModels,
        metrics: Metrics,
        clock: Callable[[], float],
        waiting: Waiting,
    ) -> None:
        self._settings, self._models, self._metrics = settings, models, metrics
        self._clock, self._waiting = clock, waiting
        self._delivery: Delivery
        self.pending: dict[int, int] = {}  # partition -> offset to go on from, once committed
        self.in_flight: dict[int, int] = {}  # likewise; Kafka was asked to commit it, and has not answered
        self.committed: dict[int, int] = {}  # partition -> offset; what is read before it is a replay
        self.replaying: set[int] = set()  # partitions that have not come to their committed offset yet
        self.due = 0.0  # when what is pending should be committed
        self.timeout_s = settings.broker_timeout_seconds
        self.states_tainted = False  # True once a batch was left half applied: states must not be written any more
        self._broken: BrokerError | None = None  # why the transaction in hand came to nothing
        self.evicted = False  # the last commit was refused since the group has moved on without us
        self._failing_since: float | None = None
        self._fenced: list[float] = []  # when, of late
        self._flushed_idle = clock()

    def connect(self, broker: Broker) -> None:
        """Make the producer.

        Raises:
            BrokerError: no broker answers.
        """
        s = self._settings
        if s.delivery == "exactly-once":
            name = f"{s.group}-{uuid.uuid4().hex[:12] if s.instance == 'auto' else s.instance}"
            make = partial(broker.producer, transactional_id=name)
            self._delivery = ExactlyOnce(make, s.input_topic, s.broker_timeout_seconds)
        else:
            self._delivery = AtLeastOnce(broker, s.broker_timeout_seconds)

    def close(self) -> None:
        """Let go of the producer without waiting."""
        self._delivery.close()

    def emit(self, result: BatchResult) -> None:
        """Hand over forecasts, then dead letters; does not wait for Kafka unless a buffer is full.

        Raises:
            BrokerError: an earlier record could not be delivered, and there is no transaction to give up.
        """
        try:
            self._delivery.emit(result.forecasts)
            self._delivery.emit(result.dead_letters)
        except BrokerError as error:
            self._give_up(error)

    def note(self, next_offsets: Mapping[int, int], restoring: Collection[int]) -> None:
        """What the next commit has to say; nothing of what is only replayed."""
        for partition, offset in next_offsets.items():
            if partition in restoring:
                continue
            committed = self.committed.get(partition, -1)
            if offset >= committed:
                self.replaying.discard(partition)
            if offset > max(committed, self.in_flight.get(partition, -1)):
                self.pending[partition] = offset

    def restored(self, partition: int, replay_from: int, committed: int) -> None:
        """The partition is read from `replay_from` on; up to `committed` it was answered before."""
        self.committed[partition] = committed
        if replay_from < committed:
            self.replaying.add(partition)

    @property
    def answered_offsets(self) -> dict[int, int]:
        """`partition -> offset` up to which all is answered."""
        return self.committed | self.in_flight | self.pending

    def forget(self, partitions: Collection[int]) -> None:
        """These are others' now, or are to be restored."""
        self.replaying -= set(partitions)
        for known in (self.pending, self.in_flight, self.committed):
            for partition in partitions:
                known.pop(partition, None)
        if not (self.pending or self.in_flight) and self._broken is None:
            self._failing_since = None  # what could not be committed is another member's now

    def poll_in_flight(self, consumer: Consumer) -> bool:
        """See what came of a commit that was not waited for; False where Kafka refused it, and it is pending again.

        With transactions, blocks until that is known, up to `timeout_s`.

        Raises:
            BrokerError: commits have failed for `broker_timeout_seconds`.
        """
        if not self.in_flight:
            return True
        try:
            with self._waiting(2 * self.timeout_s):
                answered = self._delivery.answered(consumer)
        except BrokerError as error:
            self._ask_again()
            self._metrics.transactions.labels("failed").inc()
            self._try_again(error)
            return False
        if answered:
            asked, self.in_flight = self.in_flight, {}
            self._note_committed(asked)
        return True

    def await_in_flight(self, consumer: Consumer) -> bool:
        """True where more may be emitted; False where the commit under way came to nothing: see `start_over`."""
        return not self._delivery.blocks_emit or self.poll_in_flight(consumer)

    def _ask_again(self) -> None:
        self.pending, self.in_flight = self.in_flight | self.pending, {}

    def commit(
        self, consumer: Consumer, everything_of: Collection[int] = (), *, wait: bool = True, overlapped: bool = False
    ) -> bool:
        """Commit what is pending; True = Kafka has it, or will be asked by `poll_in_flight`.
        Blocks at most twice `timeout_s`.

        Not to `wait` is possible at any time without transactions, and with them if `overlapped`: the caller
        does nothing with Kafka until it knows by `await_in_flight` what came of it.

        Of the partitions `everything_of` all states go along. Without transactions, a commit that Kafka refuses is
        tried again with the next one; polling goes on, for that is what mends it when the group has moved on without
        us. A transaction that fails is given up: see `start_over`.

        Raises:
            BrokerError: it has failed for `broker_timeout_seconds`, or a record was refused.
        """
        if self._broken is not None or not self.poll_in_flight(consumer):
            return False
        if self.in_flight:  # no answer in all that time: now it is waited for
            self._ask_again()
            wait = True
        wait = wait or (self._delivery.blocks_emit and not overlapped)
        offsets = dict(self.pending)
        texts = partial(self._texts, offsets)
        done: list[bool] = []
        steps: list[tuple[Callable[[], None], Callable[[BrokerError], None]]] = [(self._flush, self._give_up)]
        if everything_of or not self._delivery.stores_apart or self._models.worthwhile():
            wait = wait or self._delivery.stores_apart
            steps += [
                (lambda: self._delivery.verify_ownership(texts, consumer), self._try_again),
                (lambda: self._store(everything_of), self._give_up),
            ]
        steps.append((lambda: done.append(self._delivery.commit(texts(), consumer, wait=wait)), self._try_again))
        with self._waiting(2 * self.timeout_s):
            for step, deal_with in steps:
                try:
                    step()
                except BrokerError as error:
                    self._metrics.transactions.labels("failed").inc()
                    deal_with(error)
                    return False
        self.pending.clear()
        self._flushed_idle = self._clock()
        if done[0]:
            self._note_committed(offsets)
        else:
            self.in_flight = offsets
        return True

    def _note_committed(self, offsets: Mapping[int, int]) -> None:
        self._metrics.transactions.labels("committed").inc()
        self._metrics.note_commit()
        self.committed |= offsets
        self._failing_since = None

    def _texts(self, offsets: Mapping[int, int]) -> dict[int, tuple[int, str]]:
        """What is committed, `partition -> (offset, metadata)`, given where each goes on."""
        return {p: (found.offset, found.text) for p, found in self._models.offsets_to_commit(offsets).items()}

    def _store(self, everything_of: Collection[int]) -> None:
        if not self.states_tainted:
            for states in self._models.due(everything_of, self.replaying):
                self._delivery.store(states)
                self._metrics.changelog_records.inc(len(states))

    def commit_last(self, consumer: Consumer, partitions: Collection[int]) -> bool:
        """Commit what is pending with all states of these partitions, before they go; True = nothing is left to."""
        if not (self.pending or self.in_flight) and (self.states_tainted or not self._models.anything_due()):
            return True
        return self.commit_all(consumer, partitions)

    def commit_all(self, consumer: Consumer, partitions: Collection[int]) -> bool:
        """Commit these partitions with all their states, whether they have moved on or not; True = Kafka has it."""
        self.poll_in_flight(consumer)  # what was refused is asked for again, here and now
        self._ask_again()
        self._repeat(partitions)
        return not self.pending or self.commit(consumer, everything_of=partitions)

    def flush_idle(self, consumer: Consumer, partitions: Collection[int]) -> None:
        """With nothing arriving, states still go to the changelog in their turn, so that a restart has no replay."""
        now = self._clock()
        self.poll_in_flight(consumer)
        if (
            self.pending
            or self.in_flight
            or now - self._flushed_idle < _IDLE_FLUSH_SECONDS
            or not self._models.anything_due()
        ):
            return
        self._flushed_idle = now
        self._repeat(partitions)
        if self.pending:
            self.commit(consumer)

    @property
    def broken(self) -> bool:
        """True where memory is ahead of what can still be committed: `start_over`, and restore."""
        return self._broken is not None

    def start_over(self, consumer: Consumer) -> None:
        """After a transaction that came to nothing, or whose end is not known. Blocks for a new producer.

        A new producer takes the transactional id from whoever has it. So a named instance asks its group first whether
        the name is still its own: of two processes with one name, the one that joined later goes on.

        Raises:
            Replaced: it is not.
            Fenced: a named instance was, again and again: somebody outside of the group has its transactional id.
            BrokerError: no broker answers.
        """
        reason = self._broken
        assert reason is not None
        if isinstance(reason, Fenced) and self._settings.instance != "auto":
            with self._waiting(2 * self._settings.broker_timeout_seconds):
                consumer.confirm()
            if not isinstance(reason, PutOut):
                self._count_fence(reason)
        log.warning(
            "starting over from what is committed",
            extra={"reason": reason.what, "fenced": isinstance(reason, Fenced), "partitions": sorted(self.committed)},
        )
        with self._waiting(2 * self._settings.broker_timeout_seconds):
            self._delivery.start_over()
        self._broken = None

    def _count_fence(self, reason: Fenced) -> None:
        """Raises Fenced where that was once too often."""
        now = self._clock()
        self._fenced = [at for at in self._fenced if now - at < _DUEL_SECONDS] + [now]
        if len(self._fenced) >= _DUEL:
            raise Fenced(
                f"fenced {_DUEL} times within {_DUEL_SECONDS:g} s: another process has the --instance "
                f"{self._settings.instance!r} ({reason.what})",
                do="Nothing is lost. Give every worker a name of its own.",
            )

    def _repeat(self, partitions: Collection[int]) -> None:
        """States can only be committed with offsets: where nothing is new, those of the last commit.

        Not in the middle of a replay: its states lack what lies between here and the committed offset, and the offset
        to replay from, which stands beside that one, must stay.
        """
        known = {p: self.committed[p] for p in partitions if p in self.committed and p not in self.replaying}
        self.pending = known | self.pending

    def _flush(self) -> None:
        """Wait until Kafka has all that was emitted, saying so every few seconds where that takes long."""
        began = self._clock()
        while True:
            tried = self._clock()
            patience = min(SAY_SECONDS, began + self.timeout_s - tried)
            try:
                return self._delivery.flush(patience)
            except BrokerError:
                now = self._clock()
                # A record that was refused stays refused; only a wait that ran out is worth another.
                if now - tried < patience or now - began >= self.timeout_s:
                    raise
                log.warning("Kafka does not answer, waiting", extra={"seconds": round(now - began)})

    def _give_up(self, error: BrokerError) -> None:
        """Records, or states, did not get through."""
        if self._settings.delivery != "exactly-once":
            raise error
        self._try_again(error)

    def _try_again(self, error: BrokerError) -> None:
        """A commit did not get through: again with the next one, or, of a transaction, from what is committed."""
        if isinstance(error, Replaced):
            raise error
        self.evicted = isinstance(error, PutOut)
        now = self._clock()
        self.due = now + _RETRY_SECONDS
        if self._settings.delivery == "exactly-once":
            self._broken = error
        if self._failing_since is None:
            self._failing_since = now
            log.warning("the offsets were not committed, trying again", extra={"reason": error.what})
        elif now - self._failing_since > self._settings.broker_timeout_seconds:
            raise error
