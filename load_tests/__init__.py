"""Load tests: they drive running services over HTTP. `load_tests.bench` alone imports the project, to ask other servers for the same."""
