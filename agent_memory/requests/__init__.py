"""From what callers ask to requests that run, and from their outcomes to logs and replies."""
