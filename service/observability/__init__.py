"""Metrics, traces, logs, liveness, and the HTTP pages for them."""
