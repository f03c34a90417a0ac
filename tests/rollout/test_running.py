"""Responses that begin where others end, against all of them at once."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kleash.errors import ConfigError
from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel
from kleash.rollout import sampler
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from tests.models.test_unpadded import ARCHITECTURES, small

PROMPTS = ["bcd", "b", "hgfedcbah", "ab", "gh"]
LONGEST = 9


class Letters:
    """A tokenizer: a letter is a token."""

    pad_token_id = 0
    eos_token_id = 1

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") + 10 for letter in text]}

    def batch_decode(self, rows: Sequence[Sequence[int]], **_settings: bool) -> list[str]:
        return ["".join(chr(token + 87) for token in row) for row in rows]


def policy(kind: str = "llama") -> LanguageModel:
    """A random model that ends a response at some tokens of forty, and so at every length."""
    model = small(kind, **ARCHITECTURES[kind])
    model.model.generation_config.eos_token_id = [1, 5, 20]
    return replace(model, tokenizer=Letters(), unpads=True)


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return policy()


def sampled(
    model: LanguageModel, prompts: Sequence[str] = PROMPTS, seed: int = 0, **shape: int
) -> tuple[Rollout, Tensor]:
    """A rollout, and the state of the generator after it."""
    given = {"num_prompts": len(prompts), "max_new_tokens": 24, **shape}
    config = RolloutConfig.model_validate(given)
    generator = torch.Generator().manual_seed(seed)
    return sample(model, prompts, config, generator), generator.get_state()


def assert_same(found: tuple[Rollout, Tensor], expected: tuple[Rollout, Tensor]) -> None:
    assert found[0].sha256() == expected[0].sha256()
    assert found[0].responses == expected[0].responses
    assert torch.equal(found[0].finished, expected[0].finished)
    logprobs = found[0].sampled_logprobs, expected[0].sampled_logprobs
    torch.testing.assert_close(*logprobs, rtol=0, atol=1e-5)
    assert torch.equal(found[1], expected[1])


@contextmanager
def passes(model: LanguageModel) -> Generator[list[tuple[torch.Size, Any]]]:
    """What a model is given: the shape of the tokens, and the cache."""
    seen: list[tuple[torch.Size, Any]] = []
    handle = model.model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(
            (given["input_ids"].shape, given["past_key_values"])
        ),
        with_kwargs=True,
    )
    yield seen
    handle.remove()


@pytest.mark.parametrize("group_size", [1, 4])
def test_how_many_run_at_once_changes_no_sample(llama: LanguageModel, group_size: int) -> None:
    size = len(PROMPTS) * group_size
    whole = sampled(llama, group_size=group_size)
    lengths = whole[0].mask.sum(-1)
    assert int(lengths.min()) < 4
    assert int(lengths.max()) == 24
    for running in (1, 3, size - 1, size, 10 * size):
        assert_same(sampled(llama, group_size=group_size, max_running=running), whole)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("look_every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_so_in_every_architecture(
    kind: str, look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of four tokens are of a row's own tokens, whenever it began."""
    monkeypatch.setitem(sampler.LOOK_EVERY, "cpu", look_every)
    model = policy(kind)
    assert_same(sampled(model, group_size=3, max_running=4), sampled(model, group_size=3))


@settings(max_examples=20)
@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=LONGEST), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_so_for_any_rollout(
    llama: LanguageModel,
    prompts: list[str],
    group_size: int,
    running: int,
    length: int,
    look_every: int,
    seed: int,
) -> None:
    """Also where a device is asked seldom, so that rows go on beyond their end and their limit."""
    shape = {"group_size": group_size, "max_new_tokens": length}
    whole = sampled(llama, prompts, seed, **shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sampler.LOOK_EVERY, "cpu", look_every)
        assert_same(sampled(llama, prompts, seed, max_running=running, **shape), whole)


def test_the_embedded_model_agrees_with_itself() -> None:
    base = load_language_model("tiny-reviews/base")
    prompts = ["the film is", "a", "despite its best efforts , this movie", "it's"]
    whole = sampled(base, prompts, group_size=4, max_new_tokens=40)
    assert_same(sampled(base, prompts, group_size=4, max_new_tokens=40, max_running=6), whole)


def test_half_precision_samples_what_it_scores(llama: LanguageModel) -> None:
    """Rounding may turn a token there, and then all after it."""
    model = replace(llama, compute=torch.bfloat16)
    rollout, _ = sampled(model, group_size=4, max_running=3)
    with torch.no_grad():
        hidden = model.hidden(rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids)
        again = token_logprobs(log_softmax(model.head(hidden)), rollout.response_ids)
    off = (again - rollout.sampled_logprobs)[rollout.mask].abs()
    assert float(off.mean()) < 0.05


def test_the_cache_is_of_those_that_run(llama: LanguageModel) -> None:
    """And of one length, whatever is in it; weights are packed for as many rows until none wait."""
    with passes(llama) as seen:
        sampled(llama, PROMPTS * 8, group_size=2, max_running=10)
    decoding = [(shape, cache) for shape, cache in seen if shape[1] == 1]
    rows = [shape[0] for shape, _ in decoding]
    assert rows[0] == 10
    assert rows == sorted(rows, reverse=True)
    (cache,) = {cache for _, cache in decoding}
    room = LONGEST + 24
    for layer in cache.layers:
        assert [x.shape[0] <= 10 and x.shape[2] <= room * 9 / 8 for x in layer.room] == [True] * 2
    ready = [shape for shape, _ in seen if shape[1] > 1]
    assert max(shape[0] for shape in ready) <= 5


@pytest.mark.parametrize("running", [1, 3, 5, 7])
def test_a_prompt_is_computed_once_for_its_group(llama: LanguageModel, running: int) -> None:
    """Also where the group begins bit by bit."""
    with passes(llama) as seen:
        sampled(llama, group_size=4, max_running=running)
    assert sum(shape[0] for shape, _ in seen if shape[1] > 1) == len(PROMPTS)


def test_prompts_are_made_ready_ahead_of_need(llama: LanguageModel) -> None:
    with passes(llama) as seen:
        sampled(llama, PROMPTS * 10, group_size=1, max_running=16)
    ready = [shape[0] for shape, _ in seen if shape[1] > 1]
    assert sum(ready) == 50
    assert ready[0] == 16
    assert min(ready[1:]) >= 2


def test_no_position_is_beyond_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that reached their limit are not looked at for a while, and GPT-2 has 64 positions."""
    monkeypatch.setitem(sampler.LOOK_EVERY, "cpu", 7)
    model, prompts = policy("gpt2"), ["a" * 40, "b" * 38, "c" * 40]
    assert model.context == 64
    assert_same(
        sampled(model, prompts, group_size=2, max_running=2),
        sampled(model, prompts, group_size=2),
    )


class Part:
    """A process that has some of the prompts; the others' rows are those of a rollout that is known."""

    def __init__(self, own: range, group_size: int, whole: Rollout) -> None:
        self.own = own
        self.rows = slice(own.start * group_size, own.stop * group_size)
        self.whole = [whole.response_ids, whole.mask, whole.sampled_logprobs, whole.finished]

    def share(self, count: int, /) -> range:
        assert count == len(PROMPTS)
        return self.own

    def gather(self, rows: Tensor, num_groups: int, /) -> Tensor:
        assert num_groups == len(PROMPTS)
        whole = self.whole.pop(0).clone()
        whole[self.rows] = rows
        return whole


@pytest.mark.parametrize("own", [range(2), range(2, 5)])
def test_each_process_has_its_rows_numbers(llama: LanguageModel, own: range) -> None:
    whole = sampled(llama, group_size=4)
    config = RolloutConfig(num_prompts=len(PROMPTS), group_size=4, max_new_tokens=24, max_running=3)
    generator = torch.Generator().manual_seed(0)
    found = sample(llama, PROMPTS, config, generator, Part(own, 4, whole[0]))
    assert_same((found, generator.get_state()), whole)


def test_a_model_whose_past_is_more_is_refused(llama: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.max_running"):
        sampled(replace(llama, unpads=False), max_running=64)
    sampled(replace(llama, unpads=False))


def test_none_at_once_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_running"):
        RolloutConfig(max_running=0)
