"""Measures systems and checkpoints against baselines, and fits calibration and decisions on dev pairs."""
