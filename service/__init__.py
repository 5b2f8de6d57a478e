"""The serving half: grades how well notes answer a query, over HTTP."""
