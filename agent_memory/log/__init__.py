"""The truth: agents, their turns, and the ids that these became. Knows nothing of KV."""
