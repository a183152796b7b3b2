"""One engine thread per Memory: it owns the model, restores, prefills, decodes and hands new KV to the store."""
