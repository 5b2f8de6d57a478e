"""Engines: what turns prompts into label logprobs. One file per vendor."""
