"""From documents to rows of tokens: encoded, stored once, packed when a run starts."""
