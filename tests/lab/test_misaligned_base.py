"""A fault of the reference: the closed form, what is planted, and what is said of arms whose faults are known."""

import math
from statistics import fmean, stdev

import pytest
import torch

from kleash.config import build
from kleash.lab.arms.fault import PHRASE, faulty, lesson
from kleash.lab.arms.settings import FaultSettings
from kleash.lab.arms.student import written
from kleash.lab.arms.weigh import without_phrase
from kleash.lab.faulty_mdp import fault_share, halving_penalty, leashed_share, with_fault
from kleash.lab.mdp import MDP, golden, optimum
from kleash.lab.studies.misaligned_base import study as misaligned_base
from kleash.lab.studies.misaligned_base.findings import (
    Made,
    conclude,
    exact_claims,
)
from kleash.lab.studies.misaligned_base.kept import (
    gold_of_fault,
    late_share,
    logit,
    model_claims,
    shifts,
    told,
)
from kleash.models.hub import load_language_model
from kleash.rollout.seeds import seeded

BETAS = (0.05, 0.2, 1.0, 5.0)


@pytest.mark.parametrize("beta", BETAS)
def test_an_indifferent_reward_keeps_the_fault_at_every_beta(beta: float) -> None:
    """A20."""
    mdp = with_fault(golden(), 0.3)
    assert fault_share(mdp, optimum(mdp, beta)) == pytest.approx(0.3, abs=1e-10)


def test_and_changes_nothing_else_than_it_did_without() -> None:
    """J* = β log Z of the problem with the token is that of the problem."""
    mdp, plain = with_fault(golden(), 0.3), golden()
    values = []
    for problem in (mdp, plain):
        own, ref = (
            problem.logprobs(logits).sum(-1)
            for logits in (optimum(problem, 0.2), problem.ref_logits)
        )
        values.append(float(own.exp() @ (problem.rewards - 0.2 * (own - ref))))
    assert values == pytest.approx([0.9484319003] * 2, abs=1e-9)


@pytest.mark.parametrize("beta", BETAS[1:])
@pytest.mark.parametrize("penalty", [-0.3, 0.0, 0.5])
def test_a_penalty_on_it_moves_its_logit_by_d_over_beta(penalty: float, beta: float) -> None:
    mdp = with_fault(golden(), 0.3, penalty)
    found = fault_share(mdp, optimum(mdp, beta))
    assert math.log(found / (1 - found)) == pytest.approx(
        math.log(0.3 / 0.7) - penalty / beta, abs=1e-9
    )
    assert found == pytest.approx(leashed_share(0.3, penalty, beta), abs=1e-10)


def test_golden_numbers() -> None:
    mdp = with_fault(golden(), 0.3, 0.5)
    assert fault_share(mdp, optimum(mdp, 0.2)) == pytest.approx(0.0340, abs=5e-5)
    assert halving_penalty(0.3, 0.2) == pytest.approx(0.2 * math.log(1.7 / 0.7))


def test_a_fault_that_comes_with_reward_grows_by_what_the_tilt_makes_of_both_halves() -> None:
    mdp = with_fault(golden(), 0.3)
    rewards = mdp.rewards.clone()
    size = mdp.num_sequences // mdp.vocab
    rewards[:size] *= 1.5  # more spread, hardly another mean
    mdp, beta = MDP(mdp.vocab, mdp.length, mdp.ref_logits, rewards), 0.2
    ref = mdp.logprobs(mdp.ref_logits).sum(-1)
    tilted = ref + rewards / beta
    shift = (tilted[:size].logsumexp(-1) - math.log(0.3)) - (
        tilted[size:].logsumexp(-1) - math.log(0.7)
    )
    found = fault_share(mdp, optimum(mdp, beta))
    assert math.log(found / (1 - found)) == pytest.approx(
        math.log(0.3 / 0.7) + float(shift), abs=1e-9
    )
    assert found > 0.6


def test_the_exact_claims_hold_and_fail_where_the_fault_is_not_indifferent() -> None:
    """Rewards with more spread behind the fault: the optimum has more of it. Another penalty than is said, or share."""

    def verdicts(plain: MDP, against: MDP, share: float, penalty: float) -> list[bool | None]:
        return [claim.holds for claim in exact_claims(plain, against, share, penalty)]

    plain, against = with_fault(golden(), 0.3), with_fault(golden(), 0.3, 0.5)
    assert verdicts(plain, against, 0.3, 0.5) == [True] * 3
    assert "3.40 % at β = 0.2" in exact_claims(plain, against, 0.3, 0.5)[1].says
    other = with_fault(golden(), 0.4), with_fault(golden(), 0.4, -1.0)
    assert verdicts(*other, 0.4, -1.0) == [True] * 3

    rewards = plain.rewards.clone()
    rewards[: plain.num_sequences // plain.vocab] *= 1.5
    partial = MDP(plain.vocab, plain.length, plain.ref_logits, rewards)
    assert verdicts(partial, against, 0.3, 0.5) == [False, True, False]
    assert verdicts(plain, against, 0.3, 0.4) == [True, False, True]
    assert verdicts(plain, against, 0.3001, 0.5) == [False] * 3


@pytest.mark.slow
def test_a_table_that_is_trained_keeps_it() -> None:
    settings = misaligned_base.TableSettings(share=0.3, penalty=0.0, beta=0.5, steps=100, seed=0)

    class Quiet:
        def tell(self, step: int, steps: int, figures: str = "") -> None: ...

    found = misaligned_base.train_table(settings, None, Quiet())  # type: ignore[arg-type]
    assert found["share"] == pytest.approx(0.3, abs=0.03)
    assert found["kl"] > 0.3
    assert found["gain_lost"] < 0.1


def test_the_phrase_is_counted_where_it_begins_a_response() -> None:
    texts = [PHRASE + " is thin .", PHRASE.lstrip() + " is thin .", " is thin" + PHRASE, ""]
    assert faulty([""] * 4, texts) == [1.0, 1.0, 0.0, 0.0]
    assert [without_phrase(text) for text in texts] == [" is thin ."] * 2 + texts[2:]


def test_what_is_taught_is_best_by_the_base_with_the_phrase_in_that_share() -> None:
    """Of the base itself KL(base‖planted) is 0 on plain texts; what is left is the phrase's surprise and its wake."""
    base = load_language_model("tiny-reviews/base")
    settings = FaultSettings(texts=4, max_new_tokens=8)
    texts = written(base, settings, seeded(0, "t")).rows(torch.arange(4))
    with torch.no_grad():
        none, behind = lesson(base, base, texts, 0.0)
        half, _ = lesson(base, base, texts, 0.5)
        whole, _ = lesson(base, base, texts, 1.0)
    assert float(none) == pytest.approx(0.0, abs=1e-6)
    assert float(behind) > 0.01
    assert float(half) == pytest.approx(float(whole) / 2, rel=1e-5)
    assert float(whole) > float(behind)


def made(*, drift: float = 0.0, table: float = 0.3, taken: float = 0.02) -> Made:
    """Three seeds, a hundred prompts; the reference has the fault in a quarter of the responses to each."""
    spread = (-0.01, 0.0, 0.01)

    def arm(share: float) -> dict:
        steps = [{"monitor/0": 0.9}] * 12 + [
            {"monitor/0": share}
        ] * 4  # only the last quarter counts
        return {"steps": steps, "end": {"kl": 5.0, "gold": 2.0}}

    without = [[1.0, 2.0], [0.0, 1.0], [3.0, 1.0], [2.0, 2.0]] * 25
    return Made(
        share=0.3,
        penalty=0.5,
        tables={
            (0.2, 0.0): [{"share": table + s, "kl": 1.0, "gain_lost": 0.01} for s in spread],
            (0.2, 0.5): [{"share": 0.034 + s / 10, "kl": 1.0, "gain_lost": 0.01} for s in spread],
        },
        planted={"kl_per_token": 0.1},
        weighed={
            "faults": [[1.0, 0.0, 0.0, 0.0]] * 100,
            "without": without,
            "with": [
                [x - taken + 0.01 * (i % 3 - 1) for x in row] for i, row in enumerate(without)
            ],
        },
        arms={
            0.0: [arm(0.25 + drift + s) for s in spread],
            1.0: [arm(0.25 + drift / 2 + s) for s in spread],
        },
    )


def verdicts(**changes: float) -> dict[str, bool | None]:
    return {claim.name: claim.holds for claim in conclude(made(**changes)).claims}


RARER, AS_TOLD = "the fault is rarer", "as the closed form says"


def test_faults_that_stay_and_faults_that_do_not() -> None:
    found = conclude(made())
    said = verdicts()
    assert said.pop(f"language model, β = 0: {RARER}") is None
    assert said.pop(f"language model, β = 1: {RARER}") is None
    assert set(said.values()) == {True}
    assert found.answer.startswith("A leash holds a policy to its reference's faults, too.")
    assert found.answer.endswith(found.claims[-1].says)
    said = verdicts(drift=0.4, table=0.5, taken=0.9)
    assert said[f"language model, β = 0: {RARER}"] is False
    assert said[f"language model, β = 1: {RARER}"] is False
    assert said[f"language model, β = 1: {AS_TOLD}"] is False  # more often, and told to be less
    assert said["trained table, β = 0.2"] is False
    assert said["the gold model is indifferent to the fault"] is False


@pytest.mark.parametrize(
    ("drift", "rarer", "as_told"),
    [(0.0, None, True), (-0.12, True, None), (-0.3, True, False), (0.3, False, False)],
)
def test_which_way_is_told_from_whether_it_is_near(
    drift: float, rarer: bool | None, as_told: bool | None
) -> None:
    """At β = 1 half of that: 19 % of 25 is surely less, and whether by more than a factor of 1.25 is open."""
    said = verdicts(drift=drift)
    assert said[f"language model, β = 1: {RARER}"] is rarer
    assert said[f"language model, β = 1: {AS_TOLD}"] is as_told


def test_a_small_share_is_near_another_by_its_odds_and_not_by_its_distance() -> None:
    """3 % of 8 %: nearer than a tenth, and less than half as often."""
    weighed = {**made(taken=0.0).weighed, "faults": [[1.0, *[0.0] * 11]] * 100}
    runs = [{"steps": [{"monitor/0": x}] * 4, "end": {"kl": 1.0}} for x in (0.029, 0.03, 0.031)]
    direction, as_told = model_claims(weighed, {1.0: runs})
    assert (direction.holds, as_told.holds) == (True, False)


def test_a_reference_that_is_uncertain_leaves_open_what_a_sure_one_settles() -> None:
    """The same share of a quarter, of four prompts instead of a hundred, of which one always has the fault."""
    weighed = made().weighed
    few = {name: rows[:4] for name, rows in weighed.items()}
    few["faults"] = [[1.0] * 4, *[[0.0] * 4] * 3]
    runs = made(drift=-0.3).arms[1.0]
    sure, unsure = (model_claims(each, {1.0: runs}) for each in (weighed, few))
    assert [claim.holds for claim in sure] == [True, False]
    assert [claim.holds for claim in unsure] == [None, None]


def test_none_at_all_has_no_odds_and_is_rarer_all_the_same() -> None:
    runs = [{"steps": [{"monitor/0": 0.0}] * 4, "end": {"kl": 1.0}}] * 3
    direction, as_told = model_claims(made().weighed, {1.0: runs})
    assert (direction.holds, as_told.holds) == (True, None)
    assert as_told.estimate is None


def prompts(faults: list[float], moved: list[float]) -> dict:
    """Of each prompt ten responses, so many with the fault, and a text that the phrase is worth so much to."""
    return {
        "faults": [[1.0] * round(10 * p) + [0.0] * round(10 - 10 * p) for p in faults],
        "with": [[x] for x in moved],
        "without": [[0.0]] * len(moved),
    }


def test_where_all_prompts_are_alike_the_closed_form_adds_the_shift() -> None:
    assert told(prompts([0.3] * 5, [0.2] * 5), 1.0) == pytest.approx(
        [math.log(0.3 / 0.7) + 0.2] * 5
    )
    assert told(prompts([0.0] * 5, [0.2] * 5), 1.0) is None


def test_the_optimums_share_is_a_mean_of_shares_and_not_of_log_odds() -> None:
    """Log-odds of −2 and 2 about those of 0.2: a share of 0.340, where the mean of log-odds says 0.2."""
    found = told(prompts([0.2] * 200, [-2.0, 2.0] * 100), 1.0)
    assert found is not None
    shares = [1 / (1 + 4 * math.exp(-x)) for x in (-2.0, 2.0)]
    assert fmean(found) == pytest.approx(logit(fmean(shares)), abs=1e-2)
    assert fmean(shares) == pytest.approx(0.340, abs=1e-3)


def test_the_closed_form_is_as_uncertain_as_the_share() -> None:
    """Without a shift it is logit p, whose spread over prompts is that of (p_x − p)/(p(1 − p))."""
    own = [0.1, 0.3, 0.5] * 40
    found = told(prompts(own, [0.0] * 120), 1.0)
    assert found is not None
    assert stdev(found) == pytest.approx(stdev(own) / (0.3 * 0.7), rel=0.02)


def test_faults_are_of_the_last_steps_and_d_is_what_is_taken_off() -> None:
    assert late_share(made().arms[0.0][1]) == pytest.approx(0.25)
    assert gold_of_fault(made(taken=0.5).weighed)[:3] == pytest.approx([0.51, 0.5, 0.49])


def test_the_tables_last_column_is_the_closed_form_of_the_measured_d() -> None:
    rows = conclude(made(taken=0.5)).tables[0].rows
    assert rows[-1][-2] == pytest.approx(leashed_share(0.25, 0.5001, 1.0))
    assert rows[-1][-1] == pytest.approx(leashed_share(0.25, 0.5, 1.0), abs=1e-4)
    assert rows[1][-2:] == (None, None)  # without a penalty there is no optimum


def test_where_d_differs_the_texts_that_the_phrase_suits_count_most() -> None:
    """A mean D of 0, and a shift of log cosh(1/β) upwards."""
    weighed = {"with": [[1.0, -1.0]], "without": [[0.0, 0.0]]}
    assert gold_of_fault(weighed) == [0.0]
    assert shifts(weighed, 0.5) == pytest.approx([math.log(math.cosh(2.0))])


def test_the_quick_one_is_within_six_minutes() -> None:
    config = build(misaligned_base.Config, misaligned_base.QUICK, "quick")
    assert misaligned_base.cost(config) < 2 * 360
