"""Query-note pairs, criteria and templates, and the prompts made of them."""
