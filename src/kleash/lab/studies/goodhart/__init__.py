"""The study `goodhart`."""
