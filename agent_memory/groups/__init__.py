"""Groups: several agents in one conversation, each with its own growing view of it."""
