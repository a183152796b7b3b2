"""How a model computes: MLX, batches, sampling, tokenizer, and the BLAS beneath them."""
