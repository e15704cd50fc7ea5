"""The training loop and what it prepares."""
