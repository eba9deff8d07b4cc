"""Where text comes from: files, the Hub, Python itself, a person's own function."""
