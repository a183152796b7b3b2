"""What outlives the process: agents' logs and their KV, in one folder."""
