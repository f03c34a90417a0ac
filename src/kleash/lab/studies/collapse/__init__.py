"""The study `collapse`."""
