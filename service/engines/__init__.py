"""Engines compute label logprobs and traces from prompts. Each vendor has its own file or folder."""
