"""The record of a run on disk: status, metrics, checkpoints; and how runs are found, listed and compared."""
