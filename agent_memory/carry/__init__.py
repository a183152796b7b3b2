"""Agents' files: an agent out of a store into one file, and from a stranger's file into a store."""
