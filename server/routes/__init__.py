"""The HTTP routes, one room a path."""
