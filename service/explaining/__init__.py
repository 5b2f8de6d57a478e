"""Explanation mode: the switch and its guard, the explainer that generates traces, and the stores of modes and traces."""
