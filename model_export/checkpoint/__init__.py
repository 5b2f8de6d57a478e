"""Checkpoint folders: assemble, adapt, pass the gates, export."""
