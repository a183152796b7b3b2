"""Models: MLX on this machine, and a deterministic fake."""
