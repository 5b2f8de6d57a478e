"""Writes the HTML reports of one run (report) and of several runs (ladder)."""
