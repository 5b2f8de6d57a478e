"""Makes checkpoint folders: merges adapters, writes the manifest and probes, runs the gates, exports."""
