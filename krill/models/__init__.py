"""Models of transformers, from configuration."""
