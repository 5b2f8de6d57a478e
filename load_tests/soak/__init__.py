"""Soak-tests a service: mixed traffic while Redis, the engine and clients fail at random, checked for lost answers and leaks."""
