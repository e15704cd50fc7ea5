"""The port on confluent-kafka (librdkafka)."""
