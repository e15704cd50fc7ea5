"""A producer without a transactional id: what all libraries' have in common."""

from __future__ import annotations

from collections.abc import Mapping

from service.broker.base import Consumer, Producer
from service.broker.calls import no_id


class PlainProducer(Producer):
    """Refuses transactions."""

    def begin(self) -> None:
        """Refused: this producer has no transactional id."""
        raise no_id()

    def commit_transaction(
        self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, timeout_s: float
    ) -> None:
        """Refused: this producer has no transactional id."""
        raise no_id()

    def abort(self, timeout_s: float) -> None:
        """Nothing to abort: this producer has no transactional id."""
