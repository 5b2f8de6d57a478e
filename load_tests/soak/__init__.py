"""Mixed traffic for a long time while Redis, the engine and clients fail at random: what was sent, what was answered, what leaked."""
