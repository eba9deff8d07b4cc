"""The configuration: its schema, where it is read from, how it is validated, and its signature."""
