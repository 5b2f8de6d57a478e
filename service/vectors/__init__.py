"""Note vectors: made once by an encoder when the service is idle, and stored for every later query."""
