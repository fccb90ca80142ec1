"""The HTTP face of the service: a Starlette application over `core.service`, without Ray."""
