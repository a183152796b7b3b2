"""One file of KV: its format, its writing, and its reading with every byte checked. Knows no manifest."""
