"""Context memory and episodes: what is worth knowing later, in one SQLite file, usable without a model."""
