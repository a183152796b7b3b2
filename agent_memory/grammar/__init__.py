"""Replies and calls held to a schema."""
