"""The HTTP side: server, middleware, authentication, routes and the console page."""
