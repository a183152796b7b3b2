"""The public deterministic fake: a runner whose KV proves what was fed to it."""
