"""Proxies whose error has a light or a heavy tail, and what selection by them is worth.

A proxy U = V + X is the gold reward V ~ N(0, 1) and an error X that knows nothing of it. Kwa, Thomas and
Garriga-Alonso 2024 (arXiv 2407.14503): where the tail of X is light, tilting by U raises V for ever; where it is heavy,
E_ref e^{λU} = ∞ for every λ > 0, and what is gained at any KL is X alone. In a finite pool all of it ends on the one
outcome whose error is largest; so pools of several sizes are drawn, and averaged over.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.integrate import quad
from scipy.special import log_ndtr
from torch import Tensor

from kleash.functional.chi_squared import chi_squared_tilt_at

DEGREES: dict[str, int | None] = {"normal": None, "t5": 5, "t3": 3, "t2": 2, "cauchy": 1}
"""Of freedom of Student's t; a tail P(X > x) ~ x^−degrees. None: normal."""
Law = Literal["kl", "clipped", "chi_squared"]
"""The tilt by U; by U clipped; and the best law by KL + ½χ², Lambert's W of U, which takes twenty times as long."""
NEARLY = 0.999
"""Of the largest KL that a clipped proxy has: as far as a tilt is looked for."""
HILL_SHARE = 0.05
"""Of the scores, which Hill's estimate looks at."""
ROBUST = 1.3489795003921634
"""Quartiles of N(0, 1) are that far apart."""


def draw_errors(error: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Errors of one of `DEGREES`, float64: X = Z/√(χ²_k/k), Z ~ N(0, 1).

    Args:
        error: a name.
        shape: of what is drawn.
        generator: what draws.

    Examples:
        >>> draws = draw_errors("t3", (100_000,), torch.Generator().manual_seed(0))
        >>> round(float((draws > 2.353363).double().mean()), 2)  # the 95 % quantile of Student's t
        0.05
    """
    normal, degrees = (
        torch.randn(shape, generator=generator, dtype=torch.double),
        DEGREES[error],
    )
    if degrees is None:
        return normal
    # χ²_k of whole k as a sum of squares, which every generator draws alike.
    squares = sum(
        torch.randn(shape, generator=generator, dtype=torch.double).square() for _ in range(degrees)
    )
    return normal / torch.as_tensor(squares / degrees).sqrt()


def gold_at(gold: Tensor, proxy: Tensor, kl: float, law: Law, clip: float) -> float:
    """E[V] of a pool's outcomes under a law that the proxy chooses, at a KL from all of them alike.

    No tilt of the clipped proxy is further than log(N/how many have the largest): beyond, its end is read.

    Args:
        gold: V, [N].
        proxy: U of the same outcomes, [N].
        kl: nats.
        law: which.
        clip: where U is cut on both sides by `clipped`.

    Examples:
        >>> gold, error = torch.randn(2, 2**16, generator=torch.Generator().manual_seed(0))
        >>> round(gold_at(gold, gold + error, 0.5, "kl", 3.0), 2)  # √(2·KL/(1 + s²)) = 0.707
        0.7
    """
    gold, proxy = gold.double(), proxy.double()
    if law == "clipped":
        proxy = proxy.clamp(-clip, clip)
        best = proxy == proxy.max()
        if kl >= NEARLY * math.log(len(proxy) / int(best.sum())):
            return float(gold[best].mean())
    return float(chi_squared_tilt_at(proxy, kl, 1.0 if law == "chi_squared" else 0.0) @ gold)


def gaussian_gain(kl: float, scale: float) -> float:
    """E[V] of the tilt at a KL where X ~ N(0, s²): √(2·KL/(1 + s²)).

    Examples:
        >>> gaussian_gain(2.0, 1.0)
        1.414214
    """
    return math.sqrt(2 * kl / (1 + scale**2))


def gaussian_best_of_n(n: int, scale: float) -> float:
    """E[V] of best-of-n where X ~ N(0, s²): E[max of n normal draws]/√(1 + s²), by quadrature.

    Examples:
        >>> round(gaussian_best_of_n(2, 1.0), 6)  # 1/√π of the maximum, over √2
        0.398942
    """

    def weighed(z: float) -> float:
        return z * n * math.exp(-z * z / 2 + (n - 1) * float(log_ndtr(z)))

    largest, _ = quad(weighed, -12.0, 12.0, limit=400, points=(0.0, math.sqrt(2 * math.log(n + 1))))
    return largest / math.sqrt(2 * math.pi * (1 + scale**2))


class Moved(NamedTuple):
    """What moving mass to a tail gains, and what it costs."""

    gain: float
    """E[X] over the reference's."""
    kl: float
    """Nats."""


def pareto_gain(tail: float) -> Moved:
    """The policy that puts mass p = t^−½ on {X > t}, X of Pareto's law P(X > x) = x^−2 from 1 on; exact.

    Under p·(X given X > t) + (1 − p)·(X given X ≤ t), E[X | X > t] = 2t: about 2√t is gained, for a KL of about
    t^−½ (1.5 log t − 1) that goes to 0.

    Args:
        tail: t, over 1.

    Examples:
        >>> found = pareto_gain(1e8)
        >>> round(found.gain), round(found.kl, 6)
        (20000, 0.002663)
    """
    moved, mass = tail**-0.5, tail**-2.0
    below = (2.0 - mass * 2 * tail) / (1 - mass)
    gain = moved * 2 * tail + (1 - moved) * below - 2.0
    kl = moved * math.log(moved / mass) + (1 - moved) * (math.log1p(-moved) - math.log1p(-mass))
    return Moved(gain, kl)


def hill(scores: Tensor, share: float = HILL_SHARE) -> Tensor:
    """Hill's estimate of the upper tail's index from its largest scores over their median: near 0 light, 1/k of t_k.

    ξ = mean over the k largest of log (U_(i) − m)/(U_(k+1) − m). Hill 1975. Few scores read high, of a normal law too.

    Args:
        scores: of the reference's responses, [*, N].
        share: k/N.

    Returns:
        [*].

    Examples:
        >>> quantiles = torch.arange(1, 20_001).double() / 20_001
        >>> hill((1 - quantiles) ** -0.5 - 2**0.5)  # Pareto's law with k = 2, moved to median 0
        tensor(0.6374, dtype=torch.float64)
    """
    centred = scores.double() - scores.double().median(-1, keepdim=True).values
    count = max(1, round(share * scores.shape[-1]))
    top = centred.topk(count + 1, -1).values
    return (top[..., :count].log() - top[..., count:].log()).mean(-1)


def largest_weight(scores: Tensor) -> Tensor:
    """Share of the largest weight in the tilt exp(U/s), s the spread by the quartiles: half a nat of a normal law.

    Where one response in a thousand holds much of a tilt of half a nat, what the tilt gains is that response's error.

    Args:
        scores: of the reference's responses, [*, N].

    Returns:
        [*].

    Examples:
        >>> scores = torch.arange(-2.0, 3.0)
        >>> largest_weight(scores), largest_weight(10 * scores)  # whatever their unit
        (tensor(0.5080, dtype=torch.float64), tensor(0.5080, dtype=torch.float64))
    """
    low, high = np.quantile(scores.double().numpy(), (0.25, 0.75), axis=-1)
    spread = torch.as_tensor((high - low) / ROBUST)
    return torch.softmax(scores.double() / spread[..., None], -1).amax(-1)
