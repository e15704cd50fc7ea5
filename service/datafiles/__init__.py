"""Readings in CSV and Parquet files."""
