"""Requests and replies in the shapes of the two well-known APIs, as plain data."""
