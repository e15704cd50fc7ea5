"""Comparing models, and publishing one to workers."""
