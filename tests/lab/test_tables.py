"""Tables of the theory: Gaussians in closed form, stale data, fixed points that name the bug, coverage of intervals."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kleash.functional.intervals import clustered_mean
from kleash.functional.kl import importance_weights, k1, k2, k3, largest_share
from kleash.lab.estimators import enumerate_terms, local
from kleash.lab.mdp import golden, optimum

# μ, then bias/KL of k2, then std/KL of k1, k2, k3 for q = N(μ, 1) against p = N(0, 1)
GAUSSIAN = [(0.1, 0.0025, 20.0, 1.4177, 1.4166), (1.0, 0.25, 2.0, 1.7321, 1.6950)]


@pytest.mark.parametrize(("mu", "bias", "std_k1", "std_k2", "std_k3"), GAUSSIAN)
def test_gaussians(mu: float, bias: float, std_k1: float, std_k2: float, std_k3: float) -> None:
    """T2: a million samples of N(μ, 1), log-ratio μx − μ²/2, KL μ²/2."""
    x = mu + torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kl, u = mu**2 / 2, mu * x - mu**2 / 2
    zero = torch.zeros_like(u)
    for estimator, shift, std in ((k1, 0.0, std_k1), (k2, bias, std_k2), (k3, 0.0, std_k3)):
        sample = estimator(u, zero)
        error = 4 * float(sample.std()) / 1e3
        assert float(sample.mean()) == pytest.approx(kl * (1 + shift), abs=error)
        assert float(sample.std()) / kl == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(
    ("estimator", "level", "bias", "std"),
    [
        (k1, None, -36.2, None),
        (k3, None, 676.0, None),
        (k1, "token", -3.16, None),
        (k3, "token", -3.16, None),
        (k1, "prefix", 0.0, 0.98),
        (k3, "prefix", 0.0, 7.3),
        (k1, "sequence", 0.0, None),
        (k3, "sequence", 0.0, None),
    ],
)
def test_stale_data(
    estimator: Callable[[Tensor, Tensor], Tensor],
    level: str | None,
    bias: float,
    std: float | None,
) -> None:
    """Sampled from the optimum at β = 0.3, asked about the one at 0.2 (pitfall 24)."""
    mdp = golden()
    policy, old = (mdp.logprobs(optimum(mdp, beta)) for beta in (0.2, 0.3))
    ref, mask = mdp.logprobs(mdp.ref_logits), torch.ones(4096, 4, dtype=torch.bool)
    estimate = estimator(policy, ref)
    if level is not None:
        estimate = estimate * importance_weights(policy, old, mask, level)  # pyright: ignore[reportArgumentType]
    totals, probs = estimate.sum(-1), old.sum(-1).exp()
    kl, mean = 2.0404678053, float((probs * totals).sum())
    assert 100 * (mean / kl - 1) == pytest.approx(bias, abs=1e-6 if bias == 0 else abs(bias) / 400)
    if std is not None:
        spread = float((probs * (totals - mean).square()).sum().sqrt())
        assert spread / kl == pytest.approx(std, rel=0.01)


ARMS = torch.arange(1, 9, dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.sin(2.3 * ARMS), -1)
REWARD = torch.cos(1.7 * ARMS)
BETA = 0.5
REVERSE = torch.softmax(REFERENCE + REWARD / BETA, -1)
FORWARD = torch.tensor(
    [0.093992, 0.009518, 0.143055, 0.445212, 0.013133, 0.075722, 0.153542, 0.065826],
    dtype=torch.float64,
)


def flow(penalty: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Exact-gradient descent on −E[r] + β·penalty over eight arms; detached probabilities weigh the penalty."""
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    for _ in range(steps):
        logprobs = torch.log_softmax(logits, -1)
        probs = logprobs.exp()
        loss = BETA * (probs.detach() * penalty(logprobs)).sum() - (probs * REWARD).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return torch.log_softmax(logits.detach(), -1)


def divergence(logprobs: Tensor, target: Tensor) -> float:
    return float((logprobs.exp() * (logprobs - target.log())).sum())


FLOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1 in the reward": lambda q: k1(q, REFERENCE).detach() * q,
    "k2 as loss": lambda q: k2(q, REFERENCE),
    "ρ·k3 as loss": lambda q: (q - q.detach()).exp() * k3(q, REFERENCE),
    "k3 as loss": lambda q: k3(q, REFERENCE),
    "k1 as loss": lambda q: k1(q, REFERENCE),
    "k3 in the reward": lambda q: k3(q, REFERENCE).detach() * q,
}


def test_the_reverse_optimum_is_the_golden_one() -> None:
    value = float((REVERSE * (REWARD - BETA * (REVERSE.log() - REFERENCE))).sum())
    assert value == pytest.approx(0.3141857076, abs=1e-9)
    assert float(REVERSE[3]) == pytest.approx(0.386030, abs=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_fixed_points_name_the_bug(name: str) -> None:
    """A7: where each placement of the penalty ends tells which divergence it really descends (pitfalls 21 to 23)."""
    end = flow(FLOWS[name], 4000)
    if name in ("k1 in the reward", "k2 as loss", "ρ·k3 as loss"):
        assert divergence(end, REVERSE) < 1e-8
    elif name == "k3 as loss":
        assert divergence(end, FORWARD) < 1e-8
        assert divergence(end, REVERSE) == pytest.approx(0.0497, abs=2e-4)
    elif name == "k1 as loss":  # no penalty at all: everything on the best arm
        assert int(end.argmax()) == int(REWARD.argmax())
        assert float(end.max()) > math.log(0.99)
    else:  # unbounded below: arms die out
        assert float(end.min()) < math.log(1e-6)


@pytest.mark.parametrize(("beta", "name", "low", "high"), [
    (1.0, "k1", 0.93, 0.97),
    (0.2, "k1", 0.93, 0.97),
    (1.0, "exact", 0.93, 0.97),
    (0.2, "exact", 0.93, 0.97),
    (0.2, "k3", 0.10, 0.45),
])  # fmt: skip
def test_intervals_cover_what_they_say_except_where_the_library_warns(
    beta: float, name: str, low: float, high: float
) -> None:
    """A9: 1,000 batches of 64 responses. At 2 nats k3's interval holds the truth a time in four, and reads low."""
    mdp = golden()
    terms = enumerate_terms(mdp, optimum(mdp, beta))
    totals = local(terms)[name].sum(-1)
    kl = float((terms.probs * totals).sum())
    generator = torch.Generator().manual_seed(5)
    batches = totals[torch.multinomial(terms.probs, 64_000, True, generator=generator)].view(-1, 64)
    clusters, ones = torch.arange(64), torch.ones(64, dtype=torch.float64)
    intervals = [clustered_mean(batch, ones, clusters) for batch in batches]
    covered = sum(i.low <= kl <= i.high for i in intervals if i.low is not None and i.high is not None)  # fmt: skip
    assert low <= covered / 1000 <= high
    if name == "k3":
        assert float(batches.mean(-1).median()) < 0.9 * kl
        # The rule: a weight with a tenth of all, or a reading above 0.6 nats. It misses none.
        flagged = [largest_share(b.abs()) > 0.1 or float(b.mean()) > 0.6 for b in batches]
        assert all(flagged)
