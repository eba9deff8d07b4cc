"""Processing of text: cleaning, filters, deduplication, sampling."""
