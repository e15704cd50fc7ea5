"""A real Kafka as a child process, for the demo and the tests."""
