"""`tidecast doctor`: looks at all that a worker needs, and says what is wrong. Nothing here writes to Kafka."""
