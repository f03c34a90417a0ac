"""The sampler against the training forward pass, and against itself in other batches."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import chdtri

from kleash.errors import InputError
from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.functional.rewards import shaped_rewards
from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel
from kleash.rollout import sampler
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import draw, sample

PROMPTS = ["the film is", "a", "despite its best efforts , this movie", "it's"]


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    return load_language_model("tiny-reviews/base")


def _sample(
    base: LanguageModel, *, group_size: int = 4, temperature: float = 1.0, seed: int = 0
) -> Rollout:
    config = RolloutConfig(
        num_prompts=4, group_size=group_size, max_new_tokens=20, temperature=temperature
    )
    return sample(base, PROMPTS, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_are_those_of_the_training_forward(
    base: LanguageModel, temperature: float
) -> None:
    rollout = _sample(base, temperature=temperature)
    with torch.no_grad():
        hidden = base.hidden(rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids)
        logprobs = log_softmax(base.head(hidden), temperature)
    again = token_logprobs(logprobs, rollout.response_ids)
    assert float((again - rollout.sampled_logprobs)[rollout.mask].abs().max()) < 1e-5


def test_the_fast_path_agrees_with_the_models_own_forward(base: LanguageModel) -> None:
    """The slow twin: one response at a time, no padding, transformers' own logits."""
    rollout = _sample(base)
    for i in (0, 5, 15):
        keep = rollout.mask[i]
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i]]
        response = rollout.response_ids[i][keep]
        ids = torch.cat([prompt, response]).unsqueeze(0)
        with torch.no_grad():
            logits = base.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        slow = token_logprobs(log_softmax(logits), response)
        assert torch.allclose(slow, rollout.sampled_logprobs[i][keep], atol=1e-5)


def test_dropping_finished_rows_changes_no_sample(
    base: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rows are at work is seen by what the model is given."""
    found: list[Rollout] = []
    counts: list[set[int]] = []
    for share in (0.1, 2.0):
        monkeypatch.setattr(sampler, "WORTH_DROPPING", share)
        monkeypatch.setattr(sampler, "LEAST_SAVED", 0)
        seen: set[int] = set()
        hook = base.model.register_forward_pre_hook(
            lambda _module, _args, given, seen=seen: seen.add(len(given["input_ids"])),
            with_kwargs=True,
        )
        found.append(_sample(base))
        hook.remove()
        counts.append(seen)
    compacted, whole = found
    assert len(counts[0]) > 4
    assert counts[1] == {4, 16}
    assert not bool(compacted.finished.all())
    assert torch.equal(compacted.response_ids, whole.response_ids)
    assert torch.allclose(compacted.sampled_logprobs, whole.sampled_logprobs, atol=1e-5)


def test_looking_seldom_changes_no_sample_and_no_later_number(
    base: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is asked every seventh token draws on after the end; what it drew is as if it had not been."""
    found: list[tuple[Rollout, float]] = []
    for every in (1, 7):
        monkeypatch.setitem(sampler.LOOK_EVERY, "cpu", every)
        generator = torch.Generator().manual_seed(0)
        config = RolloutConfig(num_prompts=1, group_size=1, max_new_tokens=60)
        rollouts = [sample(base, PROMPTS[:1], config, generator) for _ in range(6)]
        found += [(rollout, float(torch.rand((), generator=generator))) for rollout in rollouts]
    assert sum(bool(rollout.finished.all()) for rollout, _ in found[:6]) >= 4
    for (rollout, number), (other, same) in zip(found[:6], found[6:], strict=True):
        assert rollout.sha256() == other.sha256()
        assert torch.equal(rollout.sampled_logprobs, other.sampled_logprobs)
        assert number == same


def test_a_response_ends_with_its_end_token_or_at_the_limit(base: LanguageModel) -> None:
    rollout = _sample(base)
    for row, keep, done in zip(rollout.response_ids, rollout.mask, rollout.finished, strict=True):
        tokens = row[keep].tolist()
        ends = [i for i, token in enumerate(tokens) if token in base.eos_ids]
        assert ends == ([len(tokens) - 1] if done else [])
        assert done or len(tokens) == 20
        assert bool((keep[:-1] >= keep[1:]).all())


def test_the_same_seed_gives_the_same_rollout(base: LanguageModel) -> None:
    assert _sample(base).sha256() == _sample(base).sha256()
    assert _sample(base).sha256() != _sample(base, seed=1).sha256()


def test_every_response_knows_the_prompt_that_it_answers(base: LanguageModel) -> None:
    """The clusters of every interval: a group is one prompt's, and its tokens are that prompt's."""
    rollout = _sample(base, group_size=3)
    assert rollout.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    part = rollout.rows(torch.tensor([10, 2, 4]))
    assert part.prompt_index.tolist() == [3, 0, 1]
    for some in (rollout, part):
        assert some.prompts == tuple(PROMPTS[i] for i in some.prompt_index)
        for prompt, ids, keep in zip(some.prompts, some.prompt_ids, some.prompt_mask, strict=True):
            assert ids[keep].tolist() == base.tokenizer(prompt)["input_ids"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_at_the_temperature_that_is_set(
    base: LanguageModel, temperature: float
) -> None:
    """χ² of 2,000 first tokens against softmax(z/τ): each that is expected ten times, and all others as one."""
    config = RolloutConfig(
        num_prompts=1, group_size=2000, max_new_tokens=1, temperature=temperature
    )
    rollout = sample(base, PROMPTS[:1], config, torch.Generator().manual_seed(5))
    with torch.no_grad():
        ids = torch.tensor([base.tokenizer(PROMPTS[0])["input_ids"]])
        logits = base.model(input_ids=ids).logits[0, -1].double()
    expected = 2000 * torch.softmax(logits / temperature, -1)
    counts = rollout.response_ids[:, 0].bincount(minlength=len(logits)).double()
    often = expected > 10
    assert int(often.sum()) > 4
    error = [*(counts - expected)[often], (counts - expected)[~often].sum()]
    spread = [*expected[often], expected[~often].sum()]
    chi2 = sum(float(e**2 / s) for e, s in zip(error, spread, strict=True))
    assert chi2 < chdtri(len(error) - 1, 0.001)


def test_rows_cut_padding_and_nothing_else(base: LanguageModel) -> None:
    rollout = _sample(base)
    index = torch.tensor([5, 1])
    part = rollout.rows(index)
    with torch.no_grad():
        whole = base.hidden(rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids)
        alone = base.hidden(part.prompt_ids, part.prompt_mask, part.response_ids)
    assert torch.allclose(whole[index][rollout.mask[index]], alone[part.mask], atol=1e-4)
    assert part.responses == (rollout.responses[5], rollout.responses[1])


def test_draws_follow_the_distribution() -> None:
    """χ² over 200,000 draws from eight tokens, one of them of probability 0."""
    logprobs = torch.log_softmax(torch.randn(8), -1)
    logprobs[3] = -torch.inf
    logprobs = torch.log_softmax(logprobs, -1)
    uniform = torch.rand(200_000, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    counts = draw(logprobs.expand(len(uniform), 8), uniform).bincount(minlength=8).double()
    expected = logprobs.double().exp() * len(uniform)
    assert counts[3] == 0
    live = expected > 0
    chi2 = float(((counts - expected)[live].square() / expected[live]).sum())
    assert chi2 < 24.3  # 0.999 quantile of χ² with 6 degrees of freedom is 22.5; 7: 24.3


def test_the_end_of_the_unit_interval_draws_the_last_possible_token() -> None:
    logprobs = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert draw(logprobs, torch.tensor([1.0 - 1e-16], dtype=torch.double)).tolist() == [1]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any),
    st.integers(0, 24),
    st.floats(0, 1, exclude_max=True),
)
def test_a_token_of_probability_0_is_never_drawn(
    weights: list[int], boundary: int, uniform: float
) -> None:
    """Not even where u falls on the boundary between two tokens, or is 0 exactly."""
    logprobs = (torch.tensor(weights) / sum(weights)).log().expand(3, -1)
    edge = min(boundary, sum(weights) - 1) / sum(weights)
    drawn = draw(logprobs, torch.tensor([0.0, edge, uniform], dtype=torch.double))
    assert all(weights[token] > 0 for token in drawn)


def test_a_boundary_belongs_to_the_token_that_begins_there() -> None:
    logprobs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).log().expand(4, -1)
    below = 0.5 - 2**-53
    uniform = torch.tensor([0.0, below, 0.5, 1 - 2**-53], dtype=torch.double)
    assert draw(logprobs, uniform).tolist() == [1, 1, 3, 3]


def test_a_prompt_longer_than_the_context_is_refused(base: LanguageModel) -> None:
    config = RolloutConfig(num_prompts=1, group_size=1, max_new_tokens=20)
    with pytest.raises(InputError, match="longer than the context"):
        sample(base, ["good " * 120], config, torch.Generator())


def test_padding_that_is_the_end_token_ends_nothing_early(base: LanguageModel) -> None:
    """Pitfall 13: PAD is EOS, EOS of its own, and no EOS at all. The score stands on the last token drawn."""
    apart = _sample(base)
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    same = _sample(replace(base, tokenizer=tokenizer))
    assert base.pad_id not in base.eos_ids
    assert same.response_ids[~same.mask].unique().tolist() == base.eos_ids
    assert torch.equal(same.mask, apart.mask)
    assert torch.equal(same.response_ids[same.mask], apart.response_ids[apart.mask])
    assert set(apart.finished.tolist()) == {True, False}
    scores, nothing = torch.arange(1.0, len(same.mask) + 1), torch.zeros(same.mask.shape)
    for rollout in (apart, same):
        rewards = shaped_rewards(scores, nothing, rollout.mask, 0.1)
        at = rollout.mask.sum(-1) - 1
        assert torch.equal(rewards[torch.arange(len(at)), at], scores)
        assert int((rewards != 0).sum()) == len(scores)
        last = rollout.response_ids[torch.arange(len(at)), at]
        is_end = torch.isin(last, torch.tensor(base.eos_ids))
        assert torch.equal(is_end, rollout.finished)
