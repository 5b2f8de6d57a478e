"""Compares Notegrade with other servers: `python -m load_tests.bench`."""
