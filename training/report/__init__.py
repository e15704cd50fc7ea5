"""What an evaluation writes: tables and plots."""
