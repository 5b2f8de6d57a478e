"""The relevance contract, shared by serving and training.

It renders a pair into a prompt, defines which tokens are labels, and turns their distribution into a score.
What varies between checkpoints is data in the manifest; what must be the same for all of them is the code here.
"""
