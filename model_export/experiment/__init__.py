"""The experiment that the step mask has to win: arms of RL and supervised training from shared warm-ups, over seeds."""
