"""The study `hacking`."""
