"""Who holds which tokens: chunks, pieces, resume points, provenance, and what is worth keeping. Pure."""
