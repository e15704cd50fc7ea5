"""The port to Kafka (`port`) and its implementations: confluent, kafka_python, memory; and the embedded broker."""
