"""What a KL can buy at most, by samples of the reference: the frontier as far as they show it, and a bound beyond.

On the tilts π_λ ∝ π_ref exp(λR) the frontier of reward over KL is concave with slope 1/λ (its β). So no policy is above
a tangent: R(π) ≤ R(π_λ) + (KL(π) − KL(π_λ))/λ, at every λ. The least of them is the frontier where samples reach, and
holds beyond the last tilt that they show.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.frontier import sampled_frontier

LEAST_EFFECTIVE = 10.0
"""Samples of every prompt that a tilt must rest on to be believed: its gain is then low for its KL by 1 %, of Gaussian
reward at 96 samples a prompt, and by 0.4 % at 512."""
TILTS = torch.logspace(-2, 1.5, 160, dtype=torch.double)
"""λ, per unit of reward."""


class Reach(NamedTuple):
    """Of one reward, as means over prompts."""

    floor: float
    """E[R] of the reference."""
    variance: float
    """Of R about each prompt's own mean, under the reference."""
    kl: tuple[float, ...]
    reward: tuple[float, ...]
    """Of the tilts that are believed, from the nearest to the reference."""
    weight: tuple[float, ...]
    """Their λ."""

    @property
    def last(self) -> float | None:
        """KL of the farthest of them, nats."""
        return self.kl[-1] if self.kl else None

    def most(self, kl: float) -> float | None:
        """The reward that no policy of this KL exceeds; None where the samples show no tilt.

        Args:
            kl: nats per response.

        Examples:
            >>> line = Reach(0.0, 1.0, (0.5, 2.0), (1.0, 2.0), (1.0, 2.0))  # of a Gaussian reward: √(2 KL)
            >>> line.most(0.5), line.most(4.0)
            (1.0, 3.0)
        """
        lines = zip(self.kl, self.reward, self.weight, strict=True)
        return min((reward + (kl - at) / weight for at, reward, weight in lines), default=None)

    def least(self, kl: float) -> float | None:
        """The reward that some policy of this KL has for certain: beyond the samples that of their last tilt.

        Args:
            kl: nats per response.
        """
        last = self.last
        return None if last is None else self.most(kl) if kl <= last else self.reward[-1]


def reach(rewards: Tensor) -> Reach:
    """The reach of samples.

    Args:
        rewards: [P, N] of N samples of the reference for each of P prompts.

    Examples:
        >>> found = reach(torch.linspace(-1, 1, 101)[None])
        >>> round(found.variance, 3), round(found.most(0.5), 3)  # √(2 Var KL), of a Gaussian one, is 0.586
        (0.343, 0.553)
    """
    found = sampled_frontier(rewards, TILTS)
    rows = [
        (float(kl), float(reward), float(weight))
        for kl, reward, weight, effective in zip(*found[:2], TILTS, found.effective, strict=True)
        if float(effective) >= LEAST_EFFECTIVE
    ]
    rewards = rewards.double()
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return Reach(float(rewards.mean()), float(rewards.var(-1).mean()), *columns)
