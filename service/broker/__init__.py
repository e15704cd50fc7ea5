"""The port to Kafka (`base`), and what stands behind it: kafka-python, memory, and the embedded broker."""
