"""A store that another process may have open: read as its last commit left it, never written."""
