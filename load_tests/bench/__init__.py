"""Notegrade beside what else could be served: `python -m load_tests.bench`."""
