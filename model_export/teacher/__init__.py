"""The reasoning teacher: SFT on gold traces, RL with the step mask, and soft labels."""
