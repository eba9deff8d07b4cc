"""The commands: one thin file each, and what they share."""
