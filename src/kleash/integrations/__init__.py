"""Other libraries' trainers, metered and recorded as our own; each needs an extra of its own."""
