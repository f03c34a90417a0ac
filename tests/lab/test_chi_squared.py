"""The optimum under χ² beside the KL: that it is one, and that training comes to it."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.errors import InputError
from kleash.lab.chi_squared import chi_squared_optimum, chi_squared_standing
from kleash.lab.closed_form import Budget, configure, set_up, solve
from kleash.lab.mdp import MDP, golden, optimum
from kleash.ledger import Ledger, SigningKey
from kleash.train.loop import run_loop

GOLDEN = golden()
COSTS = list(itertools.product([0.02, 0.2, 2.0], [1e-3, 0.1, 1.0, 30.0]))


def moved(seed: int, scale: float) -> Tensor:
    """Logits off the reference's."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(GOLDEN.ref_logits.shape, generator=draw, dtype=torch.double)
    return GOLDEN.ref_logits + scale * noise


@pytest.mark.parametrize(("beta", "coef"), COSTS)
def test_it_meets_the_conditions_of_an_optimum(beta: float, coef: float) -> None:
    """A30: log z + c·z = (R − ν)/β of every sequence, a law that sums to 1, and logits that have it."""
    found = chi_squared_optimum(GOLDEN, beta, coef)
    log_weights = found.log_law - GOLDEN.logprobs(GOLDEN.ref_logits).sum(-1)
    residual = log_weights + coef * log_weights.exp() - (GOLDEN.rewards - found.nu) / beta
    spread = float(GOLDEN.rewards.max() - GOLDEN.rewards.min())

    assert float(residual.abs().max()) < 1e-9
    assert float(found.log_law.logsumexp(-1)) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(
        GOLDEN.logprobs(found.logits).sum(-1), found.log_law, rtol=0, atol=1e-10
    )
    assert float(log_weights.exp().max()) <= 1 + spread / (beta * coef)


def test_the_largest_weight_grows_as_a_line_where_the_tilts_grows_as_an_exponential() -> None:
    ref = GOLDEN.logprobs(GOLDEN.ref_logits).sum(-1)
    pulls = [5.0, 10.0, 20.0, 40.0]
    linear = [
        float((chi_squared_optimum(GOLDEN, 1 / pull, 1.0).log_law - ref).max().exp())
        for pull in pulls
    ]
    exponential = [
        float((GOLDEN.logprobs(optimum(GOLDEN, 1 / pull)).sum(-1) - ref).max().exp())
        for pull in pulls
    ]

    assert all(b < 2.05 * a for a, b in itertools.pairwise(linear))
    assert exponential[1] > 3 * exponential[0]
    assert exponential[0] > 3 * linear[0]


def test_without_chi_squared_it_is_the_tilt_and_with_little_it_is_near() -> None:
    tilted = GOLDEN.logprobs(optimum(GOLDEN, 0.2)).sum(-1)
    none = chi_squared_optimum(GOLDEN, 0.2, 0.0)
    torch.testing.assert_close(none.log_law, tilted, rtol=0, atol=1e-12)
    assert none.nu == pytest.approx(0.9484319003, abs=1e-9)
    away = [
        float((chi_squared_optimum(GOLDEN, 0.2, coef).log_law - tilted).abs().max())
        for coef in (1e-4, 1e-6, 1e-8)
    ]
    assert away[1] == pytest.approx(away[0] / 100, rel=0.05)
    assert away[2] == pytest.approx(away[0] / 10_000, rel=0.05)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("coef", [0.0, 0.1, 1.0])
def test_what_a_policy_loses_is_a_bregman_divergence_from_the_optimum(
    coef: float, scale: float
) -> None:
    """J* − J = β (KL(π‖π*) + (c/2) Σ (π − π*)²/π_ref), and J* = ν + βc (1 + χ²*/2)."""
    found = chi_squared_standing(GOLDEN, moved(0, scale), 0.2, coef)
    best = chi_squared_optimum(GOLDEN, 0.2, coef)
    at_best = chi_squared_standing(GOLDEN, best.logits, 0.2, coef)

    assert found.gap > 0.1
    assert found.gap == pytest.approx(0.2 * found.bregman, rel=1e-10)
    assert found.j + found.gap == pytest.approx(at_best.j, abs=1e-12)
    assert at_best.j == pytest.approx(
        best.nu + 0.2 * coef * (1 + at_best.chi_squared / 2), abs=1e-12
    )


def test_golden_numbers() -> None:
    found = chi_squared_optimum(GOLDEN, 0.2, 1.0)
    standing = chi_squared_standing(GOLDEN, found.logits, 0.2, 1.0)

    assert found.nu == pytest.approx(0.2280216133, abs=1e-9)
    assert standing.j == pytest.approx(0.6084720066, abs=1e-9)
    assert standing.reward == pytest.approx(0.9559151048, abs=1e-9)
    assert standing.kl == pytest.approx(0.8349635243, abs=1e-9)
    assert standing.chi_squared == pytest.approx(1.8045039330, abs=1e-9)
    assert standing.gain_lost == pytest.approx(0, abs=1e-12)


def test_what_no_float_holds_is_refused_by_what_was_asked() -> None:
    with pytest.raises(InputError, match=r"optimum at β = 0\.0001 and c = 1 .*take a larger β"):
        chi_squared_optimum(GOLDEN, 1e-4, 1.0)


@pytest.mark.parametrize(
    ("name", "placement"),
    [("rloo", "exact"), pytest.param("grpo", "reward", marks=pytest.mark.slow)],
)
def test_training_comes_near_it_on_a_small_problem(name: str, placement: str) -> None:
    draw = torch.Generator().manual_seed(1)
    logits, rewards = (torch.randn(n, generator=draw, dtype=torch.double) for n in ((5, 4), (16,)))
    mdp, beta, coef = MDP(4, 2, logits, rewards), 0.3, 3.0
    settings = {"num_epochs": 1, "num_minibatches": 1}
    solved = solve(
        mdp,
        name,
        beta,
        0,
        budget=Budget(128, 80, 0.15, settings),
        sections={"penalty": {"chi_squared": coef, "placement": placement}},
    )
    policy = torch.tensor(solved.policy)
    found = chi_squared_standing(mdp, policy, beta, coef)
    of_kl_alone = chi_squared_standing(mdp, optimum(mdp, beta), beta, coef)

    assert found.gain_lost is not None
    assert of_kl_alone.gain_lost is not None
    assert 0 <= found.gain_lost <= 0.01
    assert of_kl_alone.gain_lost > 0.5
    assert solved.standing.gain_lost is not None
    assert solved.standing.gain_lost > 0.1
    assert found.gap == pytest.approx(beta * found.bregman, abs=1e-9)


@pytest.mark.long
def test_a_controller_holds_nats_with_it(tmp_path: Path) -> None:
    """Its model is of the exponential family, where σ_r/σ_u holds; here that is over twice the β that does."""
    sections = {
        "penalty": {"chi_squared": 1.0},
        "rl": {"controller": "tilt", "kl_coef": None, "kl_target": 0.8},
        "optimizer": {"schedule": "constant"},
    }
    config = configure(GOLDEN, "rloo", 0.2, 0, Budget(512, 200, 0.05), sections)
    with Ledger.create(tmp_path / "run", [SigningKey.generate()]) as ledger:
        readings = [record.kl.value for record in run_loop(set_up(GOLDEN, config), ledger)]

    assert max(readings) < 0.8 * 1.15
    assert sum(readings[-60:]) / 60 == pytest.approx(0.8, rel=0.05)


@pytest.mark.long
def test_training_comes_to_it_on_the_golden_problem() -> None:
    solved = solve(GOLDEN, "rloo", 0.2, 0, sections={"penalty": {"chi_squared": 1.0}})
    found = chi_squared_standing(GOLDEN, torch.tensor(solved.policy), 0.2, 1.0)

    assert found.gain_lost is not None
    assert found.gain_lost <= 0.01
    assert found.gap == pytest.approx(0.2 * found.bregman, abs=1e-6)
