"""Checkpoints and the exported model: saving, retention, branching, export, upload."""
