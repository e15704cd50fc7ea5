"""The embedded Kafka, without starting it."""

import sys
from pathlib import Path

import pytest

from tidecast.service.broker.embedded.server import free_port


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell the range otherwise")
def test_no_outgoing_connection_takes_the_port_of_a_broker_that_is_started_again():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < free_port() < first for _ in range(50))
