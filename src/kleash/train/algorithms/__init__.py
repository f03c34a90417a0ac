"""Algorithms of policy optimisation, as records of small functions."""

from kleash.train.algorithms.config import AlgorithmConfig
from kleash.train.algorithms.record import Algorithm, Minibatch, Targets, TokenTerms
from kleash.train.algorithms.registry import ALGORITHMS, resolve_algorithm

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmConfig",
    "Minibatch",
    "Targets",
    "TokenTerms",
    "resolve_algorithm",
]
