"""What the worker needs of its topics before it joins the group."""

from __future__ import annotations

from service.broker.base import Broker
from service.errors import BrokerError
from service.settings import Settings, default, flag


def check_topics(broker: Broker, settings: Settings) -> None:
    """See that all topics are there, and input and output have the same number of partitions.

    Raises:
        BrokerError: they do not fit; it holds the command that mends it.
    """
    s = settings
    names = (s.input_topic, s.output_topic, s.dead_letter_topic)
    found = {name: broker.partitions(name) for name in names}
    wanted = found[s.input_topic] or found[s.output_topic] or 4
    create = f"tidecast topics create --partitions {wanted}" + "".join(
        f" {flag(name)} {getattr(s, name)}"
        for name in ("bootstrap_servers", "input_topic", "output_topic", "dead_letter_topic")
        if getattr(s, name) != default(name)
    )
    missing = [name for name in names if found[name] is None]
    if missing:
        raise BrokerError(f"there is no topic {' and no topic '.join(missing)}", do=f"Make what is missing: {create}")
    if found[s.input_topic] != found[s.output_topic]:
        raise BrokerError(
            f"{s.input_topic} has {found[s.input_topic]} partitions and {s.output_topic} {found[s.output_topic]}; "
            "they must have the same number, for a forecast goes to the partition number of its reading",
            do=f"Delete {s.output_topic}, or name another with --output-topic, then: {create}",
        )
