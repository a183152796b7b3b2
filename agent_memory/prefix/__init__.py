"""Who holds which tokens: chunks and their chain. Pure."""
