"""Training on Hugging Face's Trainer."""
