"""Runs and sweeps on disk: folders are named and claimed, checkpoints renamed into place; how runs are listed."""
