"""Every algorithm climbs to the optimum that is known, through the code that trains language models."""

import math

import pytest
import torch

from kleash.lab.closed_form import (
    Attained,
    Budget,
    Job,
    algorithm_names,
    median_run,
    solve,
    solve_all,
    standing,
)
from kleash.lab.mdp import MDP, golden, optimum, tilt
from kleash.lab.plant import plant, weight_for

BETA = 0.3
PENALTIES = [
    {"placement": "reward"},
    {"placement": "reward", "estimator": "k1"},
]


def drawn(seed: int, vocab: int, length: int) -> MDP:
    """A problem at random."""
    draw = torch.Generator().manual_seed(seed)
    shell = MDP(vocab, length, torch.empty(0), torch.empty(0))
    return MDP(
        vocab,
        length,
        torch.randn(shell.num_prefixes, vocab, generator=draw, dtype=torch.double),
        torch.randn(shell.num_sequences, generator=draw, dtype=torch.double),
    )


def short(name: str) -> Budget:
    """Enough for a problem of sixteen sequences."""
    if name == "trpo":
        return Budget(128, 40, 1.0)
    if name == "dpo":
        return Budget(512, 200, 0.1)
    if name.startswith("ppo"):
        return Budget(256, 60, 0.05, {"num_epochs": 1, "num_minibatches": 2})
    return Budget(128, 80, 0.15, {"num_epochs": 1, "num_minibatches": 1})


IN_TURN = {
    "trpo",
    "ppo",
    "dr_grpo",
    "dapo",
    "ppo_kl",
    "reinforce",
    "reinforce++",
    "rloo",
    "gspo",
}
"""Of another's lines but for a choice or two: these take their turn with what is slow."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in IN_TURN else name
        for name in algorithm_names()
    ],
)
def test_every_algorithm_comes_near_the_optimum_of_a_small_problem(name: str) -> None:
    mdp = drawn(1, 4, 2)
    found = solve(mdp, name, BETA, 0, budget=short(name)).standing

    assert found.gain_lost is not None
    assert 0 <= found.gain_lost <= 0.03
    assert found.gap == pytest.approx(BETA * found.kl_to_optimum, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: "-".join(p.values()))
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_whichever_way_the_penalty_is_placed(name: str, penalty: dict[str, str]) -> None:
    """A scale that changed β would end at another tilt: at β·σ, far outside."""
    found = solve(
        drawn(2, 4, 2), name, BETA, 0, budget=short(name), sections={"penalty": penalty}
    ).standing

    assert found.gain_lost is not None
    assert found.gain_lost <= 0.03


def test_the_standing_of_a_tilt_is_on_the_frontier() -> None:
    """No policy has more reward at its KL: what is gained over a tilt of the same KL is at most rounding."""
    mdp = golden()
    on = standing(mdp, tilt(mdp, 3.0), BETA)
    solved = solve(mdp, "rloo", BETA, 0, budget=Budget(128, 20, 0.1)).standing
    same = standing(mdp, tilt(mdp, weight_for(plant(mdp), solved.kl)), BETA)

    assert on.gap == pytest.approx(BETA * on.kl_to_optimum, abs=1e-12)
    assert solved.reward <= same.reward + 1e-9


def test_the_optimum_is_the_optimum() -> None:
    found = standing(golden(), optimum(golden(), 0.2), 0.2)

    assert found.j == pytest.approx(0.9484319003, abs=1e-9)
    assert found.gap == 0
    assert found.kl == pytest.approx(2.04046781, abs=1e-8)


def test_where_there_is_nothing_to_gain_none_is_lost() -> None:
    flat = MDP(2, 1, torch.zeros(1, 2, dtype=torch.double), torch.ones(2, dtype=torch.double))

    assert standing(flat, flat.ref_logits, BETA).gain_lost is None


def test_a_seed_is_a_run() -> None:
    first, again, other = (
        solve(drawn(3, 3, 2), "rloo", BETA, seed, budget=Budget(64, 5, 0.1)) for seed in (0, 0, 1)
    )

    assert first.policy == again.policy
    assert first.policy != other.policy


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_alone() -> None:
    mdp, budget = drawn(3, 3, 2), Budget(64, 5, 0.1)
    jobs = [Job(mdp, "rloo", BETA, seed, budget) for seed in range(2)]
    steps: list[int] = []
    found = solve_all(jobs, lambda event: steps.append(event[1]))

    assert sorted(steps) == sorted([1, 2, 3, 4, 5] * 2)
    for seed, run in enumerate(found["rloo"]):
        assert run.policy == solve(mdp, "rloo", BETA, seed, budget=budget).policy


def test_the_median_run_is_the_one_in_the_middle() -> None:
    def run(j: float) -> Attained:
        known = standing(golden(), golden().ref_logits, BETA)
        values = {name: getattr(known, name) for name in type(known).__dataclass_fields__}
        return Attained(type(known)(**{**values, "j": j}), [], 0.0)

    assert median_run([run(3.0), run(1.0), run(2.0)]).standing.j == 2.0
    assert math.isclose(median_run([run(1.0), run(2.0)]).standing.j, 2.0)


@pytest.mark.long
def test_the_golden_problem_within_its_budget() -> None:
    """A4, with the penalty placed as by default. `kleash lab closed-form` has the other algorithms."""
    found = solve(golden(), "grpo", 0.2, 0).standing

    assert found.gain_lost is not None
    assert found.gain_lost <= 0.01
    assert found.gap == pytest.approx(0.2 * found.kl_to_optimum, abs=1e-6)


@pytest.mark.slow
def test_preferences_come_as_near_as_their_pairs_let_them() -> None:
    """A4: 2.05 % of the gain lost with 2,000 steps of 2,048 fresh pairs."""
    found = solve(golden(), "dpo", 0.2, 0).standing

    assert found.gain_lost == pytest.approx(0.0205, abs=0.003)
    assert found.gap == pytest.approx(0.2 * found.kl_to_optimum, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("seed", "vocab", "length"), [(12, 10, 2), (11, 4, 5)])
def test_problems_at_random(seed: int, vocab: int, length: int) -> None:
    found = solve(drawn(seed, vocab, length), "rloo", BETA, seed, budget=Budget(512, 600, 0.1))

    assert found.standing.gain_lost is not None
    assert found.standing.gain_lost <= 0.02
