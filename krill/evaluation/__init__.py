"""What a model has learned: bits per byte of texts, tasks of choices, and what differs by more than chance."""
