"""Advantages and returns from rewards per token, and what they are compared with and divided by."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation: A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t; returns = A + V.

    Schulman et al. 2016, arXiv 1506.02438. The response ends at its last unmasked token:
    nothing is bootstrapped beyond.

    Args:
        rewards: reward per token; only unmasked ones count.
        values: V(h_t), the value of the state *before* token t.
        mask: True at the response's own tokens, contiguous from the left.
        gamma: discount γ.
        gae_lambda: λ; 1 gives the Monte-Carlo return minus V, 0 the one-step error.

    Returns:
        Advantages and returns, 0 where masked.

    Examples:
        >>> advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]),
        ...                           torch.tensor([[True, True]]), gae_lambda=0.5)
        >>> advantages, returns
        (tensor([[0.2500, 0.5000]]), tensor([[0.7500, 1.0000]]))
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * gae_lambda * running, 0.0)
        advantages[:, t] = running
        following = values[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def deviation(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Standard deviation of the unmasked values (divisor n − 1); 1 when it is rounding or there are fewer than two.

    It is what whitening divides by. Whatever is added to a loss beside whitened advantages must be divided by it too:
    otherwise β silently becomes β·σ.

    Examples:
        >>> deviation(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]))
        tensor(1.4142)
    """
    chosen = values[mask]
    if chosen.numel() < 2:
        return torch.ones_like(values.sum())
    scale = chosen.std()
    # What is left of equal values is rounding: to divide by it would make any β of nothing.
    least = chosen.abs().max() * torch.finfo(chosen.dtype).eps * chosen.numel() ** 0.5
    return torch.where(scale > least, scale, torch.ones_like(scale))


def whiten(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, shift_mean: bool = True
) -> Float[Tensor, "B T"]:
    """(x − mean)/std over unmasked values; with `shift_mean=False` the mean stays (Ziegler's reward whitening).

    Examples:
        >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[-0.7071,  0.7071,  0.0000]])
    """
    centred = values - values[mask].mean() if shift_mean else values
    return torch.where(mask, centred / deviation(values, mask), 0.0)


def returns_to_go(rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """G_t = Σ_{j≥t} r_j of each response; 0 where masked.

    Examples:
        >>> returns_to_go(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[3., 2., 0.]])
    """
    summed = torch.where(mask, rewards, 0.0).flip(-1).cumsum(-1).flip(-1)
    return torch.where(mask, summed, 0.0)


def mean_of_others(values: Float[Tensor, "B T"], index: Int[Tensor, " B"]) -> Float[Tensor, "B T"]:
    """For each row the mean of the other rows of its group: (Σ_group x − x_i)/(n − 1); 0 in a group of one.

    The leave-one-out baseline (Kool et al. 2019; RLOO, Ahmadian et al. 2024, arXiv 2402.14740): it knows nothing of the
    response that it is compared with, so that the gradient stays unbiased. A mean that includes the response is that
    with advantages (1 − 1/n) times as large.

    Args:
        values: of each response, at each position.
        index: which group each is in.

    Examples:
        >>> mean_of_others(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([0, 0, 1]))
        tensor([[3.],
                [1.],
                [0.]])
    """
    _, group, counts = index.unique(return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, group, values)
    others = (counts - 1).clamp(min=1)[group, None]
    return torch.where(counts[group, None] > 1, (sums[group] - values) / others, 0.0)


def coefficient_of_others(
    values: Float[Tensor, "B T"], control: Float[Tensor, "B T"], index: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """For each response the c that leaves Σ (x − c y)² least in all the others, about the means of their groups.

    The coefficient of a control variate, c = Σ_k x_k y_k / Σ_k y_k² over responses k ≠ i and all positions. That of
    response i knows nothing of i, so that subtracting c_i y_i takes away variance and adds no bias. 0 where the
    others' y don't differ.

    Args:
        values: x of each response, at each position.
        control: y, what is to be subtracted c times.
        index: which group each is in.

    Examples:
        >>> x, y = torch.tensor([[2.0], [4.0], [7.0]]), torch.tensor([[1.0], [2.0], [3.0]])
        >>> coefficient_of_others(x, y, torch.zeros(3, dtype=torch.long))
        tensor([3.0000, 2.5000, 2.0000])
    """
    _, group, counts = index.unique(return_inverse=True, return_counts=True)
    n = counts[group, None].double()

    def centred(each: Tensor) -> Tensor:
        exact = each.double()
        sums = exact.new_zeros(len(counts), exact.shape[1]).index_add_(0, group, exact)
        return exact - sums[group] / n

    # Σ over the others about their own mean: that of all, less n/(n − 1) of what i is off it; a group of one has none.
    weight = torch.where(n > 1, n / (n - 1).clamp(min=1), 0.0)

    def of_others(products: Tensor) -> Tensor:
        return products.sum() - (weight * products).sum(-1)

    x, y = centred(values), centred(control)
    squares = of_others(y * y)
    known = squares > _ROUNDING * (y * y).sum()
    return torch.where(known, of_others(x * y) / torch.where(known, squares, 1.0), 0.0).to(
        values.dtype
    )


LEAST_DEVIATION = 0.1
"""Of the other groups' root mean square: no response is scaled up further."""
_ROUNDING = 1e-12
"""Of squares, in float64: what is left below it is none."""


def deviation_of_others(
    scores: Float[Tensor, " B"], index: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """For each response the standard deviation of the other scores of its group (divisor n − 2).

    GRPO divides by that of the whole group (arXiv 2402.03300), which is large where the response itself is an outlier:
    what is far from the mean then counts less, and the fixed point is no tilt of the reference. That of the others
    knows nothing of the response: a group's whole objective is divided, and where it ends is left alone.

    Bounded below by a tenth of the other groups' root mean square. Where the others of its group say nothing, as they
    are all the same or only one, that root mean square itself is taken; of all groups, its own too, where no other
    group's scores differ; 1 where none's do.

    Args:
        scores: R per response.
        index: which group each is in.

    Examples:
        >>> deviation_of_others(torch.tensor([1.0, 3.0, 5.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1]))
        tensor([1.4142, 2.8284, 1.4142, 2.0000, 2.0000])
    """
    exact = scores.double()
    _, group, counts = index.unique(return_inverse=True, return_counts=True)
    # From the least of the group on: of scores that are all the same rounding must leave no deviation.
    least = exact.new_full((len(counts),), torch.inf).scatter_reduce(0, group, exact, "amin")
    exact = exact - least[group]
    sums = exact.new_zeros(len(counts)).index_add_(0, group, exact)
    squares = (exact - (sums / counts)[group]).square()
    total = exact.new_zeros(len(counts)).index_add_(0, group, squares)
    free = counts - 1
    elsewhere, every = total.sum() - total, total.sum() / free.sum().clamp(min=1)
    is_known = elsewhere > _ROUNDING * total.sum()
    typical = torch.where(is_known, elsewhere / (free.sum() - free).clamp(min=1), every).sqrt()[
        group
    ]
    n = counts[group]
    # About the others' own mean: Σ_{j≠i} (x_j − m)² less what i moves the mean by.
    others = total[group] - squares * n / (n - 1).clamp(min=1)
    others = torch.where(others > _ROUNDING * total[group], others, 0.0)
    found = (others / (n - 2).clamp(min=1)).sqrt()
    found = torch.where(found > 0, found.clamp(min=LEAST_DEVIATION * typical), typical)
    return torch.where(typical > _ROUNDING, found, 1.0).to(scores.dtype)
