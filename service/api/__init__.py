"""The HTTP door: schemas, keys, errors as problem+json, routes."""
