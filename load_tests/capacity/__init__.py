"""How many replicas, how much memory and where it breaks first: a model of capacity, held against what was measured."""
