"""Sources of text: local files, Hub data sets, the Python documentation, a custom function."""
