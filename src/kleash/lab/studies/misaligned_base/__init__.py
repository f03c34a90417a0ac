"""The study `misaligned-base`."""
