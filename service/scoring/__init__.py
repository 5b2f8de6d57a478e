"""The request path: from a validated request to an answer, pair by pair."""
