"""The relevance contract, shared by serving and training.

How a pair becomes a prompt, which tokens are labels, and how their distribution becomes a score.
What varies between checkpoints is data in the manifest; what must never differ is the code here.
"""
