"""Records compressed with each of Kafka's codecs are read with each client, as they are installed by default."""

import pytest
from kafka import KafkaProducer

from tests.contract.broker_contract import drain
from tidecast.service.broker.connect import CLIENTS


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_topic_that_a_producer_compresses_is_read(ports, broker, topic, client, codec):
    name = topic(partitions=1)
    producer = KafkaProducer(bootstrap_servers=broker, compression_type=codec, linger_ms=50)
    values = [b"%d " % n * 100 for n in range(200)]
    for value in values:
        producer.send(name, value, b"k", partition=0)
    producer.flush()
    producer.close()
    consumer = ports[client].consumer()
    consumer.assign(name, {0: 0})
    assert drain(consumer, 200).values == values
    consumer.close()
