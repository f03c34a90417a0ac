"""Best-of-n: the best by reward of n responses drawn from the reference; its law, its KL, its reward.

It is the policy without training that every trained one is compared with, on a plane of reward against KL. Its KL is
commonly given as log n − (n−1)/n, which is only an upper bound (Beirami et al. 2024, arXiv 2401.01879). Here n is any
real number ≥ 1 unless said otherwise, and everything is worked out in float64.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

NORMALISED = 1e-4
"""How far log Σp may lie from 0: float32 log-probabilities of a large space stay well within."""
_SMALL = -37.0
"""Where log(n·p) is below this, 1 − (1−p)^n is n·p to the last digit of float64."""


def best_of_n_kl_bound(n: float | int) -> float:
    """KL(best-of-n‖π_ref) ≤ log n − (n−1)/n, nats: reached where no two draws can be alike or tie.

    Beirami et al. 2024, section 3. It is loose where outcomes are few or rewards tie.

    Raises:
        ValueError: n is not a finite number ≥ 1.

    Examples:
        >>> best_of_n_kl_bound(4), best_of_n_kl_bound(60_000)
        (0.636294, 10.002117)
    """
    _refuse_unless_drawn(n)
    return math.log(n) - (n - 1) / n


def best_of_n_law(
    logprobs: Float[Tensor, " N"], rewards: Float[Tensor, " N"], n: float | int
) -> Float[Tensor, " N"]:
    """The exact log-probabilities of best-of-n over outcomes that are all known.

    π_n(y) = p(y)/P · (F^n − (F − P)^n), with P the probability of y's reward and F that of a reward at most as high: of
    draws that tie, each is as likely to be taken. What `reverse_kl` makes of it and `logprobs` is the exact KL.

    Args:
        logprobs: log p of the reference, normalised; −inf where an outcome is impossible.
        rewards: of the same outcomes.
        n: number of draws.

    Raises:
        ValueError: n is not a finite number ≥ 1, probabilities don't sum to 1, a reward is not finite.

    Examples:
        >>> best_of_n_law(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.0, 1.0, 1.0]), 2).exp()
        tensor([0.2500, 0.4500, 0.3000], dtype=torch.float64)
    """
    _refuse_unless_drawn(n)
    _refuse_unless_finite("rewards", rewards)
    logprobs = logprobs.double()
    log_total = logprobs.logsumexp(-1)
    if not abs(float(log_total)) <= NORMALISED:  # also where it is NaN
        raise ValueError(f"probabilities must sum to 1, not {float(log_total.exp())}")
    logprobs = logprobs - log_total
    levels, level = rewards.unique(return_inverse=True)  # lowest first
    level_logprobs = _logsumexp_by_level(logprobs, level, len(levels))
    at_most = level_logprobs.logcumsumexp(-1)
    above = level_logprobs.flip(-1).logcumsumexp(-1).flip(-1)[1:]
    above = pad(above, (0, 1), value=-torch.inf)
    # Large n asks for log F where F is next to 1: there it is taken from what is above.
    at_most = torch.where(at_most < -1, at_most, torch.log1p(-above.exp()))
    # F^n − (F − P)^n = F^n (1 − (1 − P/F)^n): all n are at most as high, and one of them is as high.
    best = n * at_most + _log_any((level_logprobs - at_most).clamp(max=0.0), n)
    law = logprobs + (best - level_logprobs)[level]
    return torch.where(logprobs == -torch.inf, -torch.inf, law)


def best_of_n_kl_estimate(logprobs: Float[Tensor, "*N"], n: float | int) -> Float[Tensor, "*N"]:
    """Beirami's estimate of KL(best-of-n‖π_ref) from the response that was chosen, nats; its mean is the estimate.

    (1−p)^n [log n + (n−1) log(1−p) − (n−1)/n] + (1 − (1−p)^n) log((1 − (1−p)^n)/p), with p = π_ref(y): the bound where
    p is small, and never above it. Beirami et al. 2024, section 4. It knows nothing of ties between different
    responses: where rewards take few values it reads high.

    Args:
        logprobs: log π_ref(y) of responses chosen as the best of n, over whole responses.
        n: number of draws each was chosen from.

    Raises:
        ValueError: n is not a finite number ≥ 1, a log-probability is not finite or above 0.

    Examples:
        >>> best_of_n_kl_estimate(torch.tensor([0.5, 1e-9]).log(), 4), best_of_n_kl_bound(4)
        (tensor([0.4991, 0.6363], dtype=torch.float64), 0.636294)
    """
    bound = best_of_n_kl_bound(n)
    _refuse_unless_finite("logprobs", logprobs)
    if bool((logprobs > 0).any()):
        raise ValueError(f"logprobs must be at most 0, not {float(logprobs.max())}")
    logprobs = logprobs.double()
    probs, log_again = logprobs.exp(), _log_any(logprobs, n)
    once = (n * torch.log1p(-probs)).exp()
    # xlog1py: where p is 1 its (1−p)^n log(1−p) is 0.
    first = once * bound + (n - 1) * torch.special.xlog1py(once, -probs)
    return first + log_again.exp() * (log_again - logprobs)


def best_of_n_reward(
    rewards: Float[Tensor, "*P N"],
    values: Float[Tensor, "*P N"] | None = None,
    *,
    n: Int[Tensor, " K"] | None = None,
) -> Float[Tensor, "*P K"]:
    """The unbiased estimate of what best-of-n gets, for many n from one set of N samples per prompt.

    Σ_i C(i−1, n−1)/C(N, n) · v_(i), v_(i) the value of the sample with the i-th lowest reward: the mean over every
    choice of n of the N. Nakano et al. 2021, arXiv 2112.09332. Samples of equal reward share the mean of their values.

    Args:
        rewards: what the best is chosen by: the proxy.
        values: what the chosen is worth: a gold reward, or its `best_of_n_kl_estimate`; None for `rewards`.
        n: whole numbers in 1 … N; None for all of them in order.

    Raises:
        ValueError: an n is not in 1 … N, a number is not finite.

    Examples:
        >>> best_of_n_reward(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([[2.0000, 2.6667, 3.0000]], dtype=torch.float64)
        >>> best_of_n_reward(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 5.0]), n=torch.tensor([2]))
        tensor([1.6667], dtype=torch.float64)
    """
    values = rewards if values is None else values
    _refuse_unless_finite("rewards", rewards)
    _refuse_unless_finite("values", values)
    num = rewards.shape[-1]
    n = torch.arange(1, num + 1, device=rewards.device) if n is None else n
    if not bool(((n >= 1) & (n <= num)).all()):
        got = f"{int(n.min())} … {int(n.max())}"
        raise ValueError(f"n must lie in 1 … {num}, the samples per prompt, not in {got}")
    ordered, order = rewards.sort(-1)
    level = pad((ordered.diff(dim=-1) != 0).cumsum(-1), (1, 0))
    values = values.double().gather(-1, order)
    totals, counts = (
        torch.zeros_like(values).scatter_add(-1, level, x)
        for x in (values, torch.ones_like(values))
    )
    return (totals / counts).gather(-1, level) @ _order_weights(n, num).t()


def _order_weights(n: Int[Tensor, " K"], num: int) -> Float[Tensor, "K N"]:
    """C(i−1, n−1)/C(N, n): n/N at i = N, and from there down times (i − n)/(i − 1), to 0 below n."""
    n = n.double().unsqueeze(-1)
    rank = torch.arange(2, num + 1, dtype=torch.double, device=n.device)
    down = ((rank - n) / (rank - 1)).flip(-1).cumprod(-1).flip(-1)
    return n / num * pad(down, (0, 1), value=1.0)


def _logsumexp_by_level(
    logprobs: Float[Tensor, " N"], level: Int[Tensor, " N"], num: int
) -> Float[Tensor, " L"]:
    peak = logprobs.new_full((num,), torch.finfo(logprobs.dtype).min)  # −inf would be NaN below
    peak = peak.scatter_reduce(0, level, logprobs, "amax")
    return peak + torch.zeros_like(peak).index_add(0, level, (logprobs - peak[level]).exp()).log()


def _log_any(logprobs: Float[Tensor, "*N"], n: float | int) -> Float[Tensor, "*N"]:
    """log(1 − (1−p)^n), that n draws hit at least once what one hits with p; log(n·p) where p itself may underflow."""
    rare = math.log(n) + logprobs
    return torch.where(rare < _SMALL, rare, (-torch.expm1(n * torch.log1p(-logprobs.exp()))).log())


def _refuse_unless_drawn(n: float | int) -> None:
    if not 1 <= n < math.inf:
        raise ValueError(f"n must be a finite number of at least 1, not {n}")


def _refuse_unless_finite(name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, and {int((~tensor.isfinite()).sum())} are not")
