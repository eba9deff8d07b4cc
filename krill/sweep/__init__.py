"""The points of a sweep: composed and validated together, chosen by a search, handed to a launcher."""
