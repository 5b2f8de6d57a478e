"""Teachers behind one port, whose features a stack combines."""
