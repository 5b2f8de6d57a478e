"""The engine on vLLM: its requests, the start and end of its processes, and its settings for this machine."""
