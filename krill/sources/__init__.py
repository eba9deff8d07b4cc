"""Sources of text: local files, Hub datasets, the Python documentation, a custom function."""
