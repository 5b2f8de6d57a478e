"""The pair cache: keeps raw label distributions by query and note."""
