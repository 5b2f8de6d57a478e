"""Metrics, logs, traces and live figures of requests."""
