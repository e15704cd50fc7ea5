"""The port in memory, for tests."""
