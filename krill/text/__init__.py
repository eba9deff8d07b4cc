"""What is done to a text, and whether it is trained on."""
