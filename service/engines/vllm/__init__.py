"""The vLLM engine: requests, its processes, and the profile chosen for this machine."""
