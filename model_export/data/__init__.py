"""Pairs, criteria and templates, and the prompts rendered from them."""
