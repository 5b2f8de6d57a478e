"""Shadowing: a sampled share of requests is scored by a second checkpoint as well, and both are held against each other."""
