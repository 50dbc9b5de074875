"""Benchmarks: one question per file; a table, then one JSON object as the last line."""
