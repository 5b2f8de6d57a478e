"""The HTML reports of a run and of several runs."""
