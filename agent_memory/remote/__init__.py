"""Objects on a store that several hosts share: a bucket or a folder. Knows no KV, no engine and no local store."""
