"""Models capacity: replicas, memory, cost and the first bottleneck, checked against measurements."""
