"""Metrics, logs, live figures and tracing."""
