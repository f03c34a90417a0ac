"""Streams of random numbers: one for each purpose, so that none depends on what another drew."""

import hashlib

import torch


def seeded(seed: int, purpose: str) -> torch.Generator:
    """An independent stream of random numbers for each purpose of one seed."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
