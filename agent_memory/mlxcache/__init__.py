"""mlx-lm's cache classes: kinds, windows, states, filling, joining and codecs."""
