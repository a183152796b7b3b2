"""What a KV cache is made of: the layout of its layers, the chain of its chunks, its classes and codecs."""
