"""Dead letters, and the headers of forecasts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidecast.service.broker.port import Headers, OutgoingBatch
from tidecast.service.input.mapping import MappedBatch
from tidecast.service.input.rejected import RecordRejected
from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.pipeline.policy import Outcome

_RECORD_BYTES = 200  # of a batch with one record, and of the header that a cut adds
TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context; the second has no meaning without the first


def write_dead_letters(
    mapped: MappedBatch, rejected: Iterable[tuple[int, RecordRejected]], *, topic: str, group: str
) -> tuple[OutgoingBatch, list[int]]:
    """Each rejected record as it came, with the reason. One with several bad readings comes once.

    Args:
        mapped: the batch.
        rejected: rows and why; in the order of the rows.
        topic: of the dead letters.
        group: of the worker.

    Returns:
        The dead letters, and the row of each.
    """
    source, dead_letters, rows = mapped.source, OutgoingBatch(topic=topic), list[int]()
    before = -1
    for row, rejection in rejected:
        record = row if mapped.records is None else mapped.records[row]
        if record == before:
            continue
        before = record
        rows.append(row)
        dead_letters.append(
            source.keys[record],
            source.values[record],
            headers=dead_letter_headers(
                rejection,
                source.headers[record],
                topic=source.topic,
                partition=source.partitions[record],
                offset=source.offsets[record],
                group=group,
            ),
            timestamp=source.timestamps[record] if source.timestamps[record] >= 0 else None,
        )
    return dead_letters, rows


def dead_letter_headers(
    rejection: RecordRejected, headers: Headers, *, topic: str, partition: int, offset: int, group: str
) -> Headers:
    """The record's own headers, then why and where it was rejected."""
    return [
        *headers,
        ("tidecast.reason", rejection.reason.encode()),
        ("tidecast.message", rejection.message.encode("utf-8", "backslashreplace")),
        ("tidecast.topic", topic.encode()),
        ("tidecast.partition", str(partition).encode()),
        ("tidecast.offset", str(offset).encode()),
        ("tidecast.group", group.encode()),
    ]


def cut_to_fit(dead_letters: OutgoingBatch, limit: int) -> int:
    """Shorten keys and values so that no dead letter has more than `limit` bytes; how many were cut.

    A header of each that was cut has its original size: a small compressed record may be large once it is unpacked.
    """
    cut = 0
    for row, (key, value) in enumerate(zip(dead_letters.keys, dead_letters.values, strict=True)):
        headers = dead_letters.headers[row]
        room = limit - _RECORD_BYTES - sum(len(name) + len(text) + 10 for name, text in headers)
        size = len(key or b"") + len(value or b"")
        if size <= room:
            continue
        if room < 0:  # the headers alone are too large: ours are kept
            headers = [header for header in headers if header[0].startswith("tidecast.")]
            room = limit - _RECORD_BYTES - sum(len(name) + len(text) + 10 for name, text in headers)
        cut += 1
        dead_letters.headers[row] = [*headers, ("tidecast.original_bytes", str(size).encode())]
        dead_letters.keys[row] = key if key is None else key[: max(room, 0)]
        left = max(room - len(dead_letters.keys[row] or b""), 0)
        dead_letters.values[row] = value if value is None else value[:left]
    return cut


def forecast_headers(headers: Sequence[Headers]) -> list[Headers]:
    """The headers of forecasts: those of the reading's trace, and no others.

    Each header costs as much time as a step of the model, in the client and again in the broker.
    """
    if not any(headers):
        return [()] * len(headers)
    return [tuple(header for header in theirs if header[0] in TRACE_HEADERS) for theirs in headers]


def dead_letters_of(work: BatchWork, topic: str, group: str) -> OutgoingBatch:
    """Those of the records that were rejected now; counts them. One with several bad readings counts once."""
    rejected = [(row, work.rejected[row]) for row in sorted(work.rejected) if not work.replayed[row]]
    dead_letters, rows = write_dead_letters(work.mapped, rejected, topic=topic, group=group)
    for row in rows:
        work.counts.dead_letters[work.rejected[row].reason] += 1
    if len(rows) < len(rejected):
        dead = [row for row, _ in rejected if work.outcome[row] == Outcome.DEAD]
        work.counts.readings -= len(dead) - len(set(rows).intersection(dead))
    return dead_letters
