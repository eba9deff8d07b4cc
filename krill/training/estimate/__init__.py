"""Estimates of a run's memory and time before it starts, and the dry run."""
