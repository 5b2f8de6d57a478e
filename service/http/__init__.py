"""The HTTP layer: server, middleware, authentication, routes and the console page."""
