"""The study `ensembles`."""
