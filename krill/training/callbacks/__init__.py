"""Callbacks that run between the steps of a training, one per file."""
