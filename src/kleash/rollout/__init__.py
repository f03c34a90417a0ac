"""Sampling responses: one small protocol, one fast local sampler."""
