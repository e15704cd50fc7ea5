"""Scores on held-out rows, and the baselines to compare with."""
