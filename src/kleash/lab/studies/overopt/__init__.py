"""The study `overopt`."""
