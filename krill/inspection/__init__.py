"""Statistics and rows of a token store, and comparisons of tokenizers, for the terminal."""
