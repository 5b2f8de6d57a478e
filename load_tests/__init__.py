"""Measures services over HTTP: benchmarks, the cost of features, capacity and soak tests."""
