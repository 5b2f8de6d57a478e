"""Compares two checkpoints on live traffic, from their Prometheus metrics. The service itself imports none of this."""
