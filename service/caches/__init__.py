"""The pair cache: raw label distributions by query and note."""
