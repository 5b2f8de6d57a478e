"""Shadowing: a second checkpoint scores a sampled share of the requests too, and the two are compared."""
