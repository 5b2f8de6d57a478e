"""The supervised training loop that the teacher and the student share."""
