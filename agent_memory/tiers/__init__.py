"""KV in memory: the hot tier, the warm tier, and the look-up over memory and disk."""
