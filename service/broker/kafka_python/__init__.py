"""The port on kafka-python."""
