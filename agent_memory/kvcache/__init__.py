"""The layout of a model's KV, and the byte format of encoded rows. Pure."""
