"""Which KV covers which tokens: chunks, pieces, resume points, provenance, worth. Pure."""
