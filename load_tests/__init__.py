"""Load tests: they drive a running service over HTTP only, and import neither half of the project."""
