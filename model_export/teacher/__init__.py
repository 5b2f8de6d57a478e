"""The reasoning teacher: warm-up, reinforcement learning with the step mask, labelling."""
