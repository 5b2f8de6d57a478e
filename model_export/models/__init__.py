"""Base models as plain transformers folders: load, inspect, quantize, score."""
