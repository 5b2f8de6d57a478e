"""Explanation mode: the switch, the traces, and the budget that keeps them out of scoring's way."""
