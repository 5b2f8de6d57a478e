"""Training on several processes, and labelling at scale with Ray."""
