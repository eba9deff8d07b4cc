"""The configuration: one schema, where it is read from, what identifies it."""
