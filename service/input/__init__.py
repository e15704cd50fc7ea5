"""Bytes of any topic to readings: formats, and the `[input]` table that says where key, time and values are."""
