"""Adapters to agent frameworks: one file each, over public names; a framework is imported by its own file alone."""
