"""Compares two checkpoints on live traffic, from their Prometheus metrics."""
