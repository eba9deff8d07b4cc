"""What is in a token store, for a person to look at."""
