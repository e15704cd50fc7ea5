"""The states of all series in memory, and their changelog."""
