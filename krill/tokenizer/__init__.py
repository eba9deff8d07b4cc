"""Tokenizers: byte-level BPE trained on the run's own text, ready ones, ready ones with more entries."""
