"""Measures of systems and checkpoints, their controls, and the fits on dev pairs."""
