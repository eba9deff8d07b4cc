"""Tokenizers: byte-level BPE trained on the text of the run, existing tokenizers, and extended ones."""
