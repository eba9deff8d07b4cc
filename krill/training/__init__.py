"""Training with Hugging Face's Trainer: the run, its data, checkpoints and metrics."""
