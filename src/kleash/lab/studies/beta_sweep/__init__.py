"""The study `beta-sweep`."""
