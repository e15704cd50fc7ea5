"""What `produce` sends, and how fast."""
