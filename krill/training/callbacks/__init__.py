"""What watches a training between its steps: one purpose, one file."""
