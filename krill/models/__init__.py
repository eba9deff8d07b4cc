"""Models of transformers, built from configuration or loaded, their cost and their document isolation."""
