"""From what callers pass to ids, and from ids to text."""
