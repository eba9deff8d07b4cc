"""Checkpoints and the exported model: written aside, verified, kept, branched off, uploaded."""
