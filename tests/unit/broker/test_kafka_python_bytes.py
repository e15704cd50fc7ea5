"""What kafka-python reads by way of this project's transport and frames, against what it reads by its own."""

import socket

import pytest
from kafka import errors
from kafka.protocol import parser as library
from kafka.protocol.consumer import FetchResponse
from kafka.protocol.frame import KafkaBytes

from tidecast.service.broker.kafka_python.transport import Frame, Transport

RECORDS = bytes(range(256)) * 9_000  # more than is taken at a time


@pytest.fixture
def connected():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport = Transport(None, ours)
    with ours, theirs:
        yield transport, theirs


def taken(transport):
    data, error = transport._sock_recv()
    return bytes(data), error


def test_what_arrives_is_read_whole_and_in_order(connected):
    transport, broker = connected
    sent = got = b""
    broker.setblocking(False)
    while len(got) < len(RECORDS):
        if len(sent) < len(RECORDS):
            sent += RECORDS[len(sent) : len(sent) + broker.send(RECORDS[len(sent) :])]
        data, error = taken(transport)
        assert error is None
        got += data

    assert got == RECORDS
    assert taken(transport) == (b"", None), "there is nothing more, and the connection stands"


def test_the_last_words_of_a_broker_that_goes_away_are_heard_before_the_connection_ends(connected):
    transport, broker = connected
    broker.sendall(b"last words")
    broker.close()

    assert taken(transport) == (b"last words", None), "the library would not look at what comes with an error"
    data, error = taken(transport)
    assert data == b"" and isinstance(error, errors.KafkaConnectionError)


def response(records):
    """A Fetch response as a broker sends it: its length, its number, one partition."""
    kind = FetchResponse.FetchableTopicResponse
    partition = kind.PartitionData(partition_index=3, error_code=0, high_watermark=9, records=records)
    answer = FetchResponse(responses=[kind(topic="c", partitions=[partition])], version=11)
    body = (7).to_bytes(4, "big") + answer.encode()
    return len(body).to_bytes(4, "big") + body


def records_of(data, piece, frame, monkeypatch):
    """Read in pieces, each out of a room that is written over before the next."""
    monkeypatch.setattr(library, "KafkaBytes", frame)
    protocol, room, found = library.KafkaProtocol(), bytearray(piece), []
    for _ in range(2):
        protocol.in_flight_requests.append(Header())
    for at in range(0, len(data), piece):
        part = data[at : at + piece]
        room[: len(part)] = part
        found += protocol.receive_bytes(memoryview(room)[: len(part)])
    return [answer.responses[0].partitions[0].records for _, answer in found]


class Header:
    correlation_id, api_key, api_version = 7, 1, 11

    def get_response_class(self):
        return FetchResponse[11]


@pytest.mark.parametrize("piece", [1, 3, 4, 5, 1_000, 1_000_000])
def test_a_response_that_comes_in_pieces_is_the_same_in_the_end(piece, monkeypatch):
    data = response(b"first" * 300) + response(b"second" * 300)

    assert records_of(data, piece, Frame, monkeypatch) == [b"first" * 300, b"second" * 300]


@pytest.mark.parametrize("kind", [KafkaBytes, Frame])
def test_a_frame_gives_back_what_was_written(kind):
    frame = kind(8)
    frame.write(b"12345")
    frame.write(memoryview(b"678"))
    assert (len(frame), frame.tell()) == (8, 8)

    frame.seek(0)

    assert (frame.read(3), bytes(frame.read()), bytes(frame.read()), frame.read(2)) == (b"123", b"45678", b"", b"")
