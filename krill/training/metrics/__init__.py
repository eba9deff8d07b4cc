"""Metrics of a run: validation, throughput, optimizer statistics, trackers."""
