"""The sweep over β: exact on the golden problem; of the arms, what is claimed where the answer is known."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.enumerable import SolveSettings, solve_golden
from kleash.lab.arms.sweep import QUICK_ARMS, Hold, arms
from kleash.lab.mdp import golden, tilt
from kleash.lab.plant import plant
from kleash.lab.studies.beta_sweep import study as beta_sweep
from kleash.lab.studies.beta_sweep.choice import answer, choice_claims, choice_table, chosen
from kleash.lab.studies.beta_sweep.exact import (
    End,
    exact_claims,
    most_reward,
    optimal,
    sensitivities,
)
from kleash.lab.studies.beta_sweep.findings import (
    Ended,
    ended,
    rest_claims,
    slope_claims,
    slopes,
)
from kleash.lab.studies.beta_sweep.frontier import (
    frontier_claims,
    objective_claims,
    root_laws,
    shares,
)
from kleash.lab.studies.collapse import study as collapse
from kleash.lab.studies.overopt import study as overopt
from kleash.lab.study.choice import choose
from kleash.lab.study.reach import Reach, reach
from kleash.lab.study.work import Desk, Work, key_of
from kleash.report.plot import draw

A1 = {
    2.0: (0.32860559, 0.07575029, 0.58638771, -1.935),
    1.0: (0.59740910, 0.27515735, 0.48200808, -1.752),
    0.5: (0.96451117, 0.80756260, 0.26554516, -1.315),
    0.3: (1.20867129, 1.43807464, 0.12434871, -0.961),
    0.2: (1.35652546, 2.04046781, 0.06384355, -0.782),
    0.1: (1.54035650, 3.33920208, 0.02197830, -0.658),
    0.05: (1.64807705, 4.81234923, 0.00427582, -0.355),
}
"""Of the golden problem: reward, KL, variance and d log KL/d log β of the optimum."""
GAUSSIAN = torch.special.ndtri((torch.arange(4000, dtype=torch.double) + 0.5) / 4000)
"""Samples of a standard Gaussian reward, evenly spread: the frontier is √(2 KL)."""


@pytest.mark.parametrize("beta", A1)
def test_optima_are_those_that_were_reckoned_before(beta: float) -> None:
    reward, kl, variance, gamma = A1[beta]
    found = optimal(plant(golden()), beta)

    assert found == pytest.approx((reward, kl, variance), abs=1e-8)
    assert found.sensitivity(beta) == pytest.approx(gamma, abs=5e-4)


def optima(*betas: float) -> dict[float, list[End]]:
    return {beta: [optimal(plant(golden()), beta)] for beta in betas}


def test_of_optima_every_exact_claim_holds() -> None:
    claims = exact_claims(optima(1.0, 0.5, 0.3, 0.2, 0.1))

    assert [claim.holds for claim in claims] == [True] * 5


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"reward": 0.02}, {"on the frontier", "never above it"}),
        ({"reward": 1e-8}, {"never above it"}),
        ({"reward": -0.02}, {"on the frontier"}),
        ({"kl": 0.021}, {"KL"}),
        ({"variance": 0.1}, {"sensitivity"}),
    ],
)
def test_what_is_not_an_optimum_breaks_its_own_claim(
    change: dict[str, float], broken: set[str]
) -> None:
    """The end at β = 0.3 is moved along the frontier (KL), off it (reward), or is of another spread."""
    ends = optima(1.0, 0.3)
    (name, by), held = *change.items(), ends[0.3][0]
    moved = held._replace(**{name: getattr(held, name) + by})
    if name == "kl":
        moved = moved._replace(reward=most_reward(plant(golden()), moved.kl))
    ends[0.3] = [moved]
    found = {
        claim.name.removeprefix("golden problem: ")
        for claim in exact_claims(ends)
        if not claim.holds
    }

    assert found == broken


def test_the_slope_between_two_optima_is_that_of_the_formula() -> None:
    """A19. log(0.80756260/0.27515735)/log 2 = 1.5533, and (1.752 + 1.315)/2 = 1.5335."""
    (found,) = sensitivities(optima(1.0, 0.5))

    assert found.measured == pytest.approx(-1.5533, abs=1e-4)
    assert found.expected == found.in_the_run == pytest.approx(-1.5335, abs=1e-4)


def test_a_few_steps_of_samples_climb_towards_the_frontier(tmp_path: Path) -> None:
    """Its figures are the enumerated ones: under the frontier, and of the reference's 0.0225 no more than is learnt."""
    desk = Desk(tmp_path, "", lambda event: None)
    settings = SolveSettings(beta=0.5, steps=12, responses=64, learning_rate=0.2)
    end = End(**solve_golden(settings, tmp_path, desk))

    assert 0.1 < end.reward <= most_reward(plant(golden()), end.kl)
    assert 0.05 < end.kl < optimal(plant(golden()), 0.5).kl
    assert 0.1 < end.variance < 0.7


def test_reach_is_the_frontier_where_samples_show_it() -> None:
    found = reach(GAUSSIAN[None])

    assert found.floor == pytest.approx(0.0, abs=1e-12)
    assert found.variance == pytest.approx(1.0, abs=0.01)
    for kl in (0.1, 0.5, 1.0):
        assert found.most(kl) == pytest.approx(math.sqrt(2 * kl), rel=0.01)


def test_beyond_the_samples_the_tangent_still_bounds_every_policy() -> None:
    """The samples show some nats: at 12 the bound is above the truth, and what is certain is below it."""
    found = reach(GAUSSIAN[None])

    assert found.last is not None
    assert 1.0 < found.last < 12.0
    bound, certain = found.most(12.0), found.least(12.0)
    assert bound is not None
    assert certain is not None
    assert certain < math.sqrt(2 * 12.0) < bound
    assert found.least(1.0) == found.most(1.0)


def test_no_policy_of_the_golden_problem_is_above_the_bound_of_its_reference() -> None:
    """Samples of the reference in proportion to its law stand in for it; the tilts reach to its best sequence."""
    mdp = golden()
    law = mdp.logprobs(mdp.ref_logits).sum(-1).exp()
    counts = (law * 20000).round().long()
    found = reach(mdp.rewards.repeat_interleave(counts)[None])
    for weight in (1.0, 5.0, 20.0):
        own = mdp.logprobs(tilt(mdp, weight)).sum(-1).exp()
        most = found.most(float(own @ (own / law).log()))
        assert most is not None
        assert float(own @ mdp.rewards) <= most + 0.02


def test_where_there_are_too_few_samples_nothing_is_bounded() -> None:
    assert reach(torch.tensor([[0.0, 1.0, 2.0]])).most(1.0) is None


LINE = Reach(0.0, 1.0, (0.5, 2.0), (1.0, 2.0), (1.0, 2.0))
"""Two tangents of the frontier √(2 KL)."""


def arm(kl: float, reward: float, gold: float, growth: float = 0.0, variance: float = 1.0) -> Ended:
    return Ended(kl, reward, gold, variance, growth)


def seeds(kl: float, reward: float, gold: float, spread: float = 0.0) -> list[Ended]:
    return [arm(kl, reward + spread * s, gold + spread * s) for s in (-1.0, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("reward", "verdicts"),
    [
        (0.75, (True, True, True)),  # of the 1.0 that 0.5 nats buy
        (1.0, (None, True, None)),
        (1.3, (False, True, False)),
        (0.3, (True, False, True)),
    ],
)
def test_an_arm_is_held_against_the_frontier(
    reward: float, verdicts: tuple[bool | None, ...]
) -> None:
    claims = frontier_claims({Hold(beta=0.5): seeds(0.5, reward, 0.0, spread=0.02)}, [LINE] * 3)

    assert tuple(claim.holds for claim in claims) == verdicts
    assert shares(seeds(0.5, reward, 0.0), [LINE] * 3) == ([pytest.approx(reward)] * 3,) * 2
    assert root_laws(seeds(0.5, reward, 0.0), [LINE] * 3) == pytest.approx([reward] * 3)


def test_one_arm_that_may_be_on_the_frontier_leaves_open_whether_all_are_below() -> None:
    """The nearer one by its mean is surely below; the other's interval reaches above, and is what is shown."""
    near, wide = seeds(0.5, 0.8, 0.0, spread=0.01), seeds(0.5, 0.6, 0.0, spread=0.3)
    (claim, *_) = frontier_claims({Hold(beta=0.5): near, Hold(beta=0.1): wide}, [LINE] * 3)

    assert claim.holds is None
    assert claim.estimate is not None
    assert claim.estimate.value == pytest.approx(0.4)
    assert claim.estimate.level == pytest.approx(0.975)  # of two


@pytest.mark.parametrize(
    ("reward", "least", "most", "holds"),
    [(2.4, 0.6, 1.2, True), (0.8, 0.2, 0.4, False), (1.6, 0.4, 0.8, None)],
)
def test_beyond_the_samples_a_share_lies_between_two(
    reward: float, least: float, most: float, holds: bool | None
) -> None:
    """At 6 nats the tangent is at 4, and the last tilt at 2: what lies between says nothing about a half."""
    group = seeds(6.0, reward, 0.0, spread=0.01)
    low, high = shares(group, [LINE] * 3)

    assert low[1] == pytest.approx(least)
    assert high[1] == pytest.approx(most)
    assert frontier_claims({Hold(beta=0.1): group}, [LINE] * 3)[1].holds is holds


@pytest.mark.parametrize(("reward", "holds"), [(1.2, True), (0.8, False), (1.0, None)])
def test_what_a_kl_costs_is_held_against_what_it_bought(reward: float, holds: bool | None) -> None:
    """At β = 0.5 two nats cost 1. Without a β, or without a cost, nothing is asked."""
    group = seeds(2.0, reward, 0.0, spread=0.02)
    arms = {Hold(beta=0.0): group, Hold(beta=0.5): group, Hold(kl_target=2.0): group}
    (claim,) = objective_claims(arms, [LINE] * 3)

    assert claim.holds is holds
    assert claim.estimate is not None
    assert claim.estimate.value == pytest.approx(reward - 1.0)


@pytest.mark.parametrize(("growth", "holds"), [(0.3, True), (-0.3, False), (0.0, None)])
def test_an_arm_at_rest_is_told_from_one_on_its_way(growth: float, holds: bool | None) -> None:
    group = [arm(1.0, 0.0, 0.0, growth + x) for x in (-0.1, 0.0, 0.1)]
    claims = rest_claims({Hold(beta=0.0): group, Hold(beta=0.1): group})

    assert [claim.holds for claim in claims] == [holds] * 2


def test_growth_and_spread_are_of_the_last_quarter() -> None:
    steps = [
        {"kl": kl, "reward_std": std}
        for kl, std in zip(range(8), [9.0] * 6 + [1.0, 2.0], strict=True)
    ]
    found = ended({"end": {"kl": 7.0, "reward": 1.0, "gold": 2.0}, "steps": steps})

    assert found == pytest.approx(Ended(7.0, 1.0, 2.0, 2.5, 6.5 / 4.5 - 1))
    assert (
        ended({"end": {"kl": 7.0, "reward": 1.0, "gold": 2.0}, "steps": steps[:1]}).growth is None
    )


def on_the_tilts(beta: float, jitter: float) -> list[Ended]:
    """Of a Gaussian reward: KL = 1/2β², Var = 1, slope −2."""
    return [arm((1 + x) / (2 * beta * beta), 1 / beta, 0.0) for x in (-jitter, 0.0, jitter)]


@pytest.mark.parametrize(
    ("small", "jitter", "holds"),
    [
        (on_the_tilts(0.1, 0.01), 0.01, True),
        ([arm(x, 1.0, 0.0) for x in (4.9, 5.0, 5.1)], 0.01, False),  # not yet at its 50 nats
        (on_the_tilts(0.1, 0.9), 0.9, None),
    ],
)
def test_the_answer_of_kl_to_beta(small: list[Ended], jitter: float, holds: bool | None) -> None:
    found = slopes(
        {Hold(beta=0.0): small, Hold(beta=0.1): small, Hold(beta=0.5): on_the_tilts(0.5, 0.0)}
    )
    (claim,) = slope_claims(found)

    assert claim.holds is holds
    if holds:
        assert found[0].measured is not None
        assert found[0].measured.value == pytest.approx(-2.0, abs=0.01)


def test_the_winner_of_noise_is_not_flattered() -> None:
    """Of many arms that are worth 0 the largest mean is well above it; what choosing is worth is not."""
    draw = torch.Generator().manual_seed(0)
    winners, worth, kept = list[float](), list[float](), 0
    for _ in range(600):
        values = torch.randn(8, 5, generator=draw).tolist()
        found = choose(values)
        assert found.value is not None
        winners.append(sum(values[found.best]) / 5)
        worth.append(found.value.value)
        kept += 0 in found.contenders

    assert sum(winners) / 600 > 0.5
    assert abs(sum(worth) / 600) < 0.06
    assert kept >= 0.93 * 600  # arm 0 is as good as any: it may be left out in one study in twenty


def test_an_arm_that_is_clearly_the_best_stands_alone() -> None:
    found = choose([[0.0, 0.1, 0.2], [2.0, 2.1, 1.9], [-1.0, -1.2, -0.8]])

    assert found.best == 1
    assert found.contenders == (1,)
    assert found.value is not None
    assert found.value.value == pytest.approx(2.0)


def three(*gold: float) -> dict[Hold, list[Ended]]:
    holds = (Hold(beta=0.0), Hold(beta=0.1), Hold(kl_target=2.0))
    return {
        h: seeds(kl, 0.0, g, 0.01) for h, kl, g in zip(holds, (80.0, 6.27, 2.1), gold, strict=True)
    }


def test_what_to_write_is_the_kl_of_the_best_arm() -> None:
    made = three(-1.0, 1.0, 0.5)
    choice = chosen(made)
    said = answer(made, choice)

    assert said.startswith(
        "Write rl.kl_target = 6.3: β = 0.1, which ended at 6.3 nats (6.3 to 6.3), has"
    )
    assert "open" not in said
    assert "the gold reward is 1.00" in said
    assert [claim.holds for claim in choice_claims(made, choice, 0.9)] == [True, True, True]
    assert [claim.holds for claim in choice_claims(made, choice, 1.0)] == [True, None, True]
    assert [claim.holds for claim in choice_claims(made, choice, 1.1)] == [True, False, True]
    assert [row[-1] for row in choice_table(made, choice).rows] == [
        "not the best",
        "recommended",
        "not the best",
    ]


def test_what_a_target_is_worth_that_was_not_run_is_said_not_to_be_measured() -> None:
    """The β was held, and not the KL where it came to; of targets that were run the nearest by its factor is told."""
    made = three(-1.0, 1.0, 0.5)
    made[Hold(kl_target=12.0)] = seeds(11.0, 0.0, 0.7, 0.01)
    said = answer(made, chosen(made))

    assert "measured with β = 0.1 held" in said
    assert "what a controller that holds it is worth was not measured" in said
    assert "12 nats is nearest, with a gold reward of 0.70" in said
    del made[Hold(kl_target=12.0)]
    assert "Of the targets that were, 2 nats is nearest" in answer(made, chosen(made))
    del made[Hold(kl_target=2.0)]
    assert answer(made, chosen(made)).endswith("No target was.")


def test_every_arm_has_a_row_that_says_what_to_write_and_what_was_measured() -> None:
    made = three(1.0, -1.0, 0.5)
    rows = [row[:3] for row in choice_table(made, chosen(made)).rows]

    assert rows == [
        ("β = 0", 'rl.controller = "fixed", rl.kl_coef = 0', "as written"),
        ("β = 0.1", "rl.kl_target = 6.3", "β = 0.1 held"),
        ("target 2 nats", "rl.kl_target = 2", "as written"),
    ]
    assert answer(made, chosen(made)).startswith(
        'Write rl.controller = "fixed", rl.kl_coef = 0: β = 0'
    )


def test_a_target_that_is_best_is_written_as_it_is() -> None:
    made = three(-1.0, 0.5, 1.0)
    said = answer(made, chosen(made))

    assert said.startswith("Write rl.kl_target = 2: target 2 nats")
    assert "not measured" not in said


def test_what_cannot_be_told_from_the_best_is_said_to_be_open() -> None:
    made = three(0.0, 1.0, 0.0)
    made[Hold(kl_target=2.0)] = [arm(2.1, 0.0, gold) for gold in (1.3, 0.8, 0.8)]
    choice = chosen(made)

    assert "can't be told from target 2 nats: that is open" in answer(made, choice)
    assert choice_claims(made, choice, 0.0)[0].holds is None
    assert [row[-1] for row in choice_table(made, choice).rows] == [
        "not the best",
        "recommended",
        "may be the best",
    ]


def test_both_studies_share_every_run() -> None:
    """And the quick ones theirs without a penalty, and at β = 0.1, with the study of over-optimisation."""
    sweep, other = (
        arms(study.Config.model_validate(study.QUICK)) for study in (beta_sweep, collapse)
    )
    assert sweep == other
    assert arms(beta_sweep.Config()) == arms(collapse.Config())

    made = overopt.plan(overopt.Config.model_validate(overopt.QUICK))
    free, held = made.free[0, 0], made.held[0.1]
    assert sweep[Hold(beta=0.0)] == free[: QUICK_ARMS["seeds"]]
    assert sweep[Hold(beta=0.1)] == held[: QUICK_ARMS["seeds"]]
    assert beta_sweep.pool_of(beta_sweep.Config()) == overopt.plan(overopt.Config()).pool


@pytest.mark.slow
def test_both_from_end_to_end(tmp_path: Path) -> None:
    """Small, so that nothing is learnt: the second study finds the first's arms, and makes only its own reference."""
    setting = {"steps": 2, "num_prompts": 2, "max_new_tokens": 6, "pairs": 20}
    setting |= {"evaluation": {"num_prompts": 2, "group_size": 2}}
    told = {"setting": setting, "seeds": 2, "betas": [0.0, 0.5], "kl_targets": [2.0]}
    small = {
        "pool": {"samples": 16},
        "golden": {"betas": [0.5], "steps": 2, "responses": 16},
    }
    with Work(tmp_path, lambda event: None, 1).open() as work:
        sweep = beta_sweep.run(beta_sweep.Config.model_validate({**told, **small}), work)
        made = work.made
        other = collapse.run(collapse.Config.model_validate(told), work)

    assert made == 1 + 2 + 1 + 6  # golden, proxies, pool, arms
    assert work.made - made == 2
    assert sweep.answer.startswith("Write rl.")
    assert [row[0] for row in sweep.tables[0].rows] == ["β = 0", "β = 0.5", "target 2 nats"]
    assert other.tables[0].rows[0][0] == "the reference"
    for findings in (sweep, other):
        assert draw(findings.to_json()["figure"])["svg"].startswith(b"<?xml")


def test_quick_is_quick() -> None:
    for study in (beta_sweep, collapse):
        assert study.cost(study.Config.model_validate(study.QUICK)) <= 2 * 360
        assert study.cost(study.Config()) > 3000


def test_of_one_arm_there_is_no_choice() -> None:
    with pytest.raises(ValidationError, match="at least two arms"):
        beta_sweep.Config(betas=(0.1,), kl_targets=())


def test_targets_are_arms_of_their_own() -> None:
    config = beta_sweep.Config(betas=(0.1,), kl_targets=(6.0,), seeds=2)
    (held, aimed) = arms(config).values()

    assert [(each.kl_coef, each.kl_target) for each in (*held, *aimed)] == [(0.1, None)] * 2 + [
        (None, 6.0)
    ] * 2
    assert key_of(train_arm, held[0]) != key_of(train_arm, aimed[0])


def test_no_arm_is_compared_with_itself() -> None:
    """Without a penalty is best on all seeds but by little: it leads itself by exactly 0, and nothing is settled."""
    golds = {
        0.0: (1.0, 2.0, 3.0, 4.0, 5.0),
        0.1: (0.9, 2.05, 2.9, 4.1, 4.8),
        0.5: (0.5, 2.4, 2.7, 4.3, 4.6),
    }
    arms = {Hold(beta=beta): [arm(2.0, 1.0, gold) for gold in row] for beta, row in golds.items()}
    choice = chosen(arms)
    assert choice.contenders == (0, 1, 2)
    (claim,) = (c for c in choice_claims(arms, choice, 0.0) if c.name == "a penalty is worth it")
    assert claim.holds is None
    assert claim.estimate is not None
    # Of the two with a penalty the others choose β = 0.5 for the first seed, and 0.1 for the rest.
    assert claim.estimate.value == pytest.approx((-0.5 + 0.05 - 0.1 + 0.1 - 0.2) / 5)


def test_the_formula_is_of_both_ends_and_not_of_one() -> None:
    """−Var/(β² KL) is −1/(0.01·50) = −2 and −8/(0.25·8) = −4: −3, as what KL does is log(8/50)/log 5 = −1.139."""
    small = [arm(50.0, 1.0, 0.7)] * 3
    large = [arm(8.0, 1.0, 0.2, variance=8.0)] * 3
    (found,) = slopes({Hold(beta=0.1): small, Hold(beta=0.5): large})

    assert found.formula is not None
    assert found.measured is not None
    assert found.ratio is not None
    assert found.gold is not None
    assert found.formula.value == pytest.approx(-3.0)
    assert found.measured.value == pytest.approx(math.log(8 / 50) / math.log(5))
    assert found.ratio.value == pytest.approx(found.measured.value / -3.0)
    assert found.gold.value == pytest.approx(0.5)
    unknown = [each._replace(variance=None) for each in large]
    (found,) = slopes({Hold(beta=0.1): small, Hold(beta=0.5): unknown})
    assert found.formula is None
