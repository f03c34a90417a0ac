"""The meter."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kleash.drift import break_down, measure_drift, measure_mismatch, measure_tails
from kleash.lab.mdp import golden, optimum
from kleash.records import KLReading

MASK = torch.tensor([[True, True, False], [True, True, True]])
KL = torch.tensor([[1.0, 2.0, float("nan")], [3.0, 4.0, 5.0]])
TWO = torch.tensor([0, 1])


def test_per_response_and_per_token_are_sums_over_responses_and_tokens() -> None:
    """Pitfall 30: the unit is in the name, and each is what its name says."""
    per_response = measure_drift(KL, MASK, TWO, reference="base")
    per_token = measure_drift(KL, MASK, TWO, reference="base", unit="token")
    assert per_response.value == pytest.approx(7.5)
    assert per_token.value == pytest.approx(3.0)
    assert per_response.name == "kl_policy_ref_per_response"
    assert per_token.name == "kl_policy_ref_per_token"
    assert (per_response.n, per_response.clusters) == (2, 2)
    assert per_response.largest_share == pytest.approx(0.8)


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf, 1.0])
def test_what_stands_in_the_padding_changes_no_reading_bit_for_bit(filler: float) -> None:
    """Pitfalls 8, 9 and 10; T9: NaN, inf or a sentinel of 1.0 at masked positions, and more padding."""
    u = torch.tensor([[0.1, -0.2, 0.0], [0.3, 0.4, -0.5]])

    def readings(fill: float, extra: int) -> list[object]:
        pad = torch.full((2, extra), fill)
        kl, ratio = (torch.cat([torch.where(MASK, x, fill), pad], 1) for x in (KL, u))
        mask = torch.cat([MASK, torch.zeros(2, extra, dtype=torch.bool)], 1)
        found = break_down(kl, ratio, torch.ones_like(kl).long(), mask, TWO)
        by_position = found.pop("by_position")
        assert all((x["nats"], x["count"]) == (0, 0) for x in by_position[3:])
        return [
            measure_drift(kl, mask, TWO, reference="base"),
            measure_drift(kl, mask, TWO, reference="base", unit="token"),
            measure_mismatch(ratio, torch.zeros_like(ratio), mask, TWO, policy="base"),
            measure_tails(kl, ratio, mask),
            found,
            by_position[:3],
        ]

    assert readings(filler, 0) == readings(0.0, 0)
    assert readings(filler, 2) == readings(0.0, 0)


def test_masked_spans_inside_a_response_are_left_out() -> None:
    """Pitfalls 11 and 12: a prompt or a tool's answer is not the policy's own, wherever it stands."""
    kl, clusters = torch.tensor([[0.5, 7.0, 8.0, 0.25], [0.5, 0.25, 9.0, 9.0]]), TWO
    mask = torch.tensor([[True, False, False, True], [True, True, False, False]])
    for unit, value in (("response", 0.75), ("token", 0.375)):
        assert measure_drift(kl, mask, clusters, reference="b", unit=unit).value == value  # pyright: ignore[reportArgumentType]


def test_the_order_of_responses_does_not_matter() -> None:
    kl, mask = torch.rand(12, 5), torch.rand(12, 5) < 0.8
    clusters, order = torch.arange(12) // 3, torch.randperm(12)
    one = measure_drift(kl, mask, clusters, reference="base")
    other = measure_drift(kl[order], mask[order], clusters[order], reference="base")
    assert other.value == pytest.approx(one.value, rel=1e-12)
    assert (other.low, other.high) == pytest.approx((one.low, one.high), rel=1e-9)


def test_answers_to_one_prompt_widen_the_interval() -> None:
    """Eight answers each to two prompts that differ are two observations, not sixteen."""
    kl = torch.tensor([1.0] * 8 + [3.0] * 8)[:, None] + 0.01 * torch.randn(16, 1)
    mask = torch.ones(16, 1, dtype=torch.bool)
    by_prompt = measure_drift(kl, mask, torch.arange(16) // 8, reference="base")
    as_if_apart = measure_drift(kl, mask, torch.arange(16), reference="base")
    assert by_prompt.high is not None
    assert as_if_apart.high is not None
    assert by_prompt.high - by_prompt.value > 5 * (as_if_apart.high - as_if_apart.value)


def test_the_reading_of_sampled_responses_holds_the_enumerated_kl() -> None:
    """On the golden problem: the interval from 512 responses of π*, and the mean over all of them weighted by π*."""
    mdp = golden()
    logits = optimum(mdp, 0.2)
    policy, ref = torch.log_softmax(logits, -1), torch.log_softmax(mdp.ref_logits, -1)
    local = (policy.exp() * (policy - ref)).sum(-1)
    kl = local[mdp.states()]
    probs = mdp.logprobs(logits).sum(-1).exp()
    assert float((probs * kl.sum(-1)).sum()) == pytest.approx(2.0404678053, rel=1e-9)
    drawn = probs.multinomial(512, replacement=True)
    mask = torch.ones(512, 4, dtype=torch.bool)
    reading = measure_drift(kl[drawn], mask, torch.arange(512), reference="golden")
    assert reading.low is not None
    assert reading.high is not None
    assert reading.low < 2.0404678053 < reading.high
    assert reading.is_trusted


def _reading(share: float | None, n: int, value: float = 2.0) -> KLReading:
    return KLReading(
        value=value,
        low=None,
        high=None,
        n=n,
        clusters=n,
        direction="policy_ref",
        unit="response",
        estimator="exact",
        reference="base",
        largest_share=share,
    )


@pytest.mark.parametrize(
    ("share", "n", "value", "trusted"),
    [
        (0.09, 64, 2.0, True),
        (0.11, 64, 2.0, False),
        (0.11, 16, 2.0, True),  # a sixteenth is each one's due
        (0.3, 8, 2.0, True),
        (0.5, 8, 2.0, False),
        (0.9, 64, 1e-9, True),  # rounding: at step 0 there is nothing to share
        (None, 64, 2.0, True),
    ],
)
def test_a_reading_that_rests_on_one_response_says_so(
    share: float | None, n: int, value: float, trusted: bool
) -> None:
    assert _reading(share, n, value).is_trusted == trusted


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_what_is_no_number_is_not_trusted(broken: float) -> None:
    kl, mask = torch.full((64, 2), 0.1), torch.ones(64, 2, dtype=torch.bool)
    kl[3, 1] = broken
    reading = measure_drift(kl, mask, torch.arange(64), reference="base")
    assert not reading.is_finite
    assert reading.largest_share is None
    assert not reading.is_trusted


def test_the_interval_holds_its_value_and_nothing_below_0() -> None:
    kl, mask = torch.tensor([[0.0], [0.0], [0.9]]), torch.ones(3, 1, dtype=torch.bool)
    reading = measure_drift(kl, mask, torch.arange(3), reference="base")
    assert reading.low == 0.0
    # Rounding may leave an exact KL a hair below 0: the interval follows it there.
    below = measure_drift(kl * 0 - 1e-9, mask, torch.arange(3), reference="base")
    assert below.low is not None
    assert below.low <= below.value < 0


def test_a_heavy_tail_is_not_trusted() -> None:
    """One response in sixty-four that drifted a hundred times further carries the mean."""
    kl = torch.full((64, 1), 0.05)
    mask = torch.ones(64, 1, dtype=torch.bool)
    assert measure_drift(kl, mask, torch.arange(64), reference="base").is_trusted
    kl[7] = 5.0
    assert not measure_drift(kl, mask, torch.arange(64), reference="base").is_trusted


def test_readings_survive_json_and_old_ones_lack_the_share() -> None:
    reading = measure_drift(KL, MASK, TWO, reference="base")
    assert KLReading.from_json(reading.to_json()) == reading
    old = _reading(None, 4)
    assert "largest_share" not in old.to_json()
    assert KLReading.from_json(old.to_json()) == old


def test_a_sampler_that_is_another_engine_shows() -> None:
    """Pitfall 48: what the sampler recorded is held against the policy, per token, and is not the policy's KL."""
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double).log()
    p = torch.tensor([0.2, 0.2, 0.6], dtype=torch.double).log()
    tokens = q.exp().multinomial(40_000, replacement=True).view(-1, 4)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    reading = measure_mismatch(q[tokens], p[tokens], mask, torch.arange(10_000), policy="base")
    exact = float((q.exp() * (q - p)).sum())
    other = float((p.exp() * (p - q)).sum())
    assert reading.high is not None
    assert not (reading.low or 0) < other < reading.high
    assert reading.low is not None
    assert reading.high is not None
    assert reading.low < exact < reading.high
    assert (reading.name, reading.estimator) == ("kl_sampler_policy_per_token", "k3")
    same = measure_mismatch(q[tokens], q[tokens], mask, torch.arange(10_000), policy="base")
    assert same.value == 0


def test_tails() -> None:
    kl = torch.arange(200.0).view(2, 100)
    ratio = torch.zeros(2, 100)
    ratio[0, :3] = -50.0
    ratio[1, 5] = 50.0
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[0, 0] = False
    tails = measure_tails(kl, ratio, mask)
    assert tails.token_max == 199.0
    assert tails.token_p99 == 198.0  # the 198th of 199
    assert tails.response_max == float(kl[1].sum())
    assert tails.k3_tail_tokens == 2


@given(
    st.lists(st.lists(st.floats(0, 50), min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_breakdowns_add_up_to_the_reading(rows: list[list[float]], prompts: int) -> None:
    """Positions sum to it, prompts average to it, tokens sum to the sampled KL."""
    width = max(map(len, rows))
    kl = torch.tensor([row + [math.nan] * (width - len(row)) for row in rows], dtype=torch.double)
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    clusters = torch.arange(len(rows)) % prompts
    tokens: Tensor = (torch.nan_to_num(kl) * 7).long() % 5
    ratio = kl - 1
    found = break_down(kl, ratio, tokens, mask, clusters, top=1000)
    value = measure_drift(kl, mask, clusters, reference="base").value
    assert sum(x["nats"] for x in found["by_position"]) == pytest.approx(value, abs=1e-9)
    weighted = sum(x["nats"] * x["count"] for x in found["by_prompt"])
    assert weighted / len(rows) == pytest.approx(value, abs=1e-9)
    sampled = float(torch.where(mask, ratio, 0.0).sum()) / len(rows)
    assert sum(x["nats"] for x in found["by_token"]) == pytest.approx(sampled, abs=1e-9)
    assert sum(x["count"] for x in found["by_token"]) == int(mask.sum())


def test_the_worst_come_first_and_no_more_than_asked_for() -> None:
    kl = torch.tensor([[0.1], [0.5], [0.3]])
    ratio = torch.tensor([[0.1], [-0.6], [0.3]])
    mask, tokens = torch.ones(3, 1, dtype=torch.bool), torch.tensor([[4], [5], [6]])
    found = break_down(kl, ratio, tokens, mask, torch.arange(3), name="token {}".format, top=2)
    assert [x["prompt"] for x in found["by_prompt"]] == [1, 2]
    assert [x["token"] for x in found["by_token"]] == ["token 5", "token 6"]
