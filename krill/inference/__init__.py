"""Generating text with a trained model, and looking into it."""
