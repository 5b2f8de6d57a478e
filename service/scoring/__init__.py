"""The request path: scores the pairs of a validated request, from the cache or on the engine."""
