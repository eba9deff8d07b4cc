"""Statistics and rows of a token store, comparisons of tokenizers, and probabilities of tokens, for display."""
