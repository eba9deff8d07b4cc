"""What a training saves: checkpoints of all ranks, which of them are kept; branching, export, upload."""
