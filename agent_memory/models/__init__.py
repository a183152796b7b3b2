"""Where a model comes from: names, folders, GGUF files and the starter model."""
