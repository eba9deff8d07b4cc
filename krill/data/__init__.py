"""Prepares documents for training: encodes and stores them once, packs them into rows when a run starts."""
