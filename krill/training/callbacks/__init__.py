"""Work between the steps of training: progress, samples, signals, early stopping, skipped steps.

Callbacks for checkpoints are in krill.training.checkpoint.
"""
