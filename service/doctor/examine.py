"""The checks in their order, and which of them need which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidecast.service.doctor import connection, group, readings, topics
from tidecast.service.doctor.patient import Check, NotChecked, Patient, State
from tidecast.service.errors import TidecastError


class Finding(NamedTuple):
    """One line."""

    state: State
    check: str
    text: str


# name -> what it needs, the check. A check is made only if nothing that it needs is wrong.
CHECKS: dict[str, tuple[tuple[str, ...], Check]] = {
    "name": ((), connection.name),
    "port": (("name",), connection.port),
    "login": (("port",), connection.login),
    "version": (("login",), connection.version),
    "rights": (("login",), connection.rights),
    "transactions": (("login",), connection.transactions),
    "topics": (("login",), topics.topics),
    "copies": (("login",), topics.copies),
    "retention": (("login",), topics.retention),
    "records": (("login",), readings.records),
    "partitioner": (("records",), readings.partitioner),
    "clock": (("records",), readings.clock),
    "model": ((), readings.model),
    "times": (("records", "model"), readings.times),
    "readings": (("records", "model"), readings.readings),
    "features": (("records", "model"), readings.features),
    "step": (("records", "model"), readings.step),
    "record size": (("records", "model"), topics.record_size),
    "members": (("login",), group.members),
    "offsets": (("login",), group.offsets),
}


def examine(patient: Patient) -> Iterator[Finding]:
    """What each check finds, as soon as it is known. Raises nothing of ours: an error is a finding."""
    unmet: dict[str, str] = {}  # check -> why what needs it cannot be checked
    for name, (needed, check) in CHECKS.items():
        try:
            if reason := next((unmet[each] for each in needed if each in unmet), None):
                raise NotChecked(reason)
            for state, text in check(patient):
                if state is State.WRONG:
                    unmet[name] = f"first correct what is wrong with: {name}"
                yield Finding(state, name, text)
        except NotChecked as why:
            unmet[name] = str(why)
            yield Finding(State.NOT_CHECKED, name, str(why))
        except TidecastError as error:
            unmet[name] = f"first correct what is wrong with: {name}"
            yield Finding(State.WRONG, name, str(error))
