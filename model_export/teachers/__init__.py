"""Teachers of the student: whatever gives a distribution over grades for a pair, and the stack that combines them."""
