"""The search for hidden drift: its gradient, its budget, what it finds and when it is silent."""

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kleash.audit.hidden.moves import Found, Pool, climb
from kleash.audit.hidden.null import THRESHOLD, p_value
from kleash.audit.hidden.result import Hidden
from kleash.audit.hidden.scorer import GRADIENT, Scorer, kl_gradient
from kleash.audit.hidden.search import search
from kleash.audit.hidden.ways import WAYS, Plan
from kleash.errors import InputError
from kleash.functional.kl import exact_kl
from kleash.models.adapters import new_adapter
from kleash.models.config import LoraConfig
from kleash.models.policy import LanguageModel

VOCAB = 64
PROMPTS = [[1, 5, 6, 7], [1, 8, 9], [1, 10, 11, 12]]


class Letters:
    """A tokenizer of 64 letters; the first three are special."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2
    all_special_ids = (0, 1, 2)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [3 + ord(x) % 61 for x in text]}

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(chr(48 + int(i)) for i in ids if not (skip_special_tokens and i < 3))


def small(seed: int = 0) -> LanguageModel:
    """A Llama of two layers with random weights."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return LanguageModel("small", LlamaForCausalLM(config).eval(), Letters())


def changed(base: LanguageModel, noise: float = 0.0, token: int | None = None) -> LanguageModel:
    """A copy with noise on all weights, or with another embedding of one token."""
    copied = replace(base, model=copy.deepcopy(base.model))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in copied.model.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
        if token is not None:
            row = copied.model.get_input_embeddings().weight[token]
            row += 3.0 * torch.randn(row.shape, generator=generator)
    return copied


def looked(policy: LanguageModel, base: LanguageModel, budget: int = 6000, **asked: Any) -> Hidden:
    return search(policy, base, PROMPTS, budget=budget, **asked)


def kl_after(policy: LanguageModel, base: LanguageModel, ids: list[int]) -> float:
    """The same KL, by the models' own logits."""
    with torch.no_grad():
        logits = [x.model(torch.tensor([ids])).logits[0, -1].double() for x in (policy, base)]
    return float(exact_kl(*logits))


def test_the_gradient_is_that_of_finite_differences() -> None:
    base = small()
    policy = changed(base, noise=0.05)
    for side in (policy, base):
        side.model.double()
    ids, steps = [1, 5, 9, 20], 1e-3
    # transformers norms in single precision whatever it is given: a smaller step would measure its rounding.
    value, slope = kl_gradient(policy, base, ids)
    one_hot = torch.nn.functional.one_hot(torch.tensor(ids), VOCAB).double()

    def kl(rows: Tensor) -> float:
        sides = []
        for side in (policy, base):
            embedded = (rows @ side.model.get_input_embeddings().weight).unsqueeze(0)
            sides.append(side.model(inputs_embeds=embedded).logits[0, -1])
        q, p = (x.log_softmax(-1) for x in sides)
        return float((q.exp() * (q - p)).sum())

    with torch.no_grad():
        assert value == pytest.approx(kl(one_hot), rel=1e-9)
        for place, token in [(0, 3), (1, 5), (2, 40), (3, 63)]:
            step = torch.zeros_like(one_hot)
            step[place, token] = steps
            found = (kl(one_hot + step) - kl(one_hot - step)) / (2 * steps)
            assert float(slope[place, token]) == pytest.approx(found, rel=1e-3, abs=1e-4)


def test_a_kept_prefix_changes_no_number_and_is_paid_once() -> None:
    base = small()
    policy = changed(base, noise=0.05)
    scorer = Scorer(policy, base, 1000)
    prefix, tails = [1, 5, 6], torch.tensor([[7, 8], [9, 10], [11, 12]])
    nats = scorer.after(prefix, tails)
    assert scorer.spent == 2 * (3 + 6)
    expected = [kl_after(policy, base, prefix + tail) for tail in tails.tolist()]
    assert nats.tolist() == pytest.approx(expected, rel=1e-4)
    assert scorer.after((), torch.tensor([[1, 5, 6, 7, 8]])).tolist() == pytest.approx(
        expected[:1], rel=1e-4
    )
    before = scorer.spent
    scorer.gradient([1, 5, 6])
    assert scorer.spent - before == 2 * GRADIENT * 3


def test_only_what_can_be_paid_for_is_scored() -> None:
    base = small()
    scorer = Scorer(base, base, 2 * (3 + 5))
    assert len(scorer.after([1, 5, 6], torch.arange(3, 20).unsqueeze(1))) == 5
    assert scorer.left == 0
    assert len(scorer.after([1], torch.tensor([[4]]))) == 0
    assert scorer.gradient([1, 5]) is None
    assert scorer.show([[1, 5]], 4) == []


@pytest.mark.parametrize("way", WAYS)
def test_the_budget_is_never_exceeded(way: str) -> None:
    base = small()
    heard: list[tuple[int, int, float]] = []
    for budget in (500, 1500):
        heard.clear()
        found = looked(
            changed(base, noise=0.05),
            base,
            budget,
            plan=Plan(way=way),
            told=lambda *said: heard.append(said),
        )
        assert 0.5 * budget < found.tokens <= budget
        assert [x[0] for x in heard] == sorted(x[0] for x in heard)
        assert heard[-1][0] == found.tokens
        assert [x[1] for x in found.curve] == sorted(x[1] for x in found.curve)


def test_a_seed_gives_one_result() -> None:
    base = small()
    policy = changed(base, noise=0.05)
    first, second, other = (looked(policy, base, 3000, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_a_model_is_no_distance_from_itself() -> None:
    base = small()
    found = looked(base, base)
    assert found.alarm is False
    assert found.statistic == pytest.approx(0.0, abs=1e-6)
    assert found.ordinary_max == pytest.approx(0.0, abs=1e-9)
    assert found.contexts[0].kl_policy_ref == pytest.approx(0.0, abs=1e-9)
    assert found.contexts[0].policy_answer == found.contexts[0].reference_answer


def test_one_changed_embedding_is_found() -> None:
    base, token = small(), 37
    policy = changed(base, token=token)
    found = looked(policy, base)
    best = found.contexts[0]
    assert token in best.ids
    assert found.alarm is True
    assert best.kl_policy_ref == pytest.approx(kl_after(policy, base, list(best.ids)), rel=1e-3)
    back = kl_after(base, policy, list(best.ids))
    assert best.kl_ref_policy == pytest.approx(back, rel=1e-3)


def test_what_moved_most_is_screened_first_where_not_all_can_be() -> None:
    base = small()
    for token in (30, 45, 63):
        found = looked(
            changed(base, token=token), base, 400, plan=Plan(way="screen", cues=(), screen=0.05)
        )
        assert token in found.contexts[0].ids


def test_noise_on_all_weights_is_no_alarm() -> None:
    base = small()
    for noise in (0.001, 0.01):
        found = looked(changed(base, noise=noise), base)
        assert found.alarm is False
        assert found.statistic is not None
        assert 0.0 < found.statistic <= THRESHOLD


def test_a_climb_never_goes_down() -> None:
    base = small()
    policy = changed(base, noise=0.02, token=37)
    scorer, pool, prefix = Scorer(policy, base, 5000), Pool(), (1, 5, 6)
    start = Found(kl_after(policy, base, [*prefix, 20, 21]), prefix, (20, 21), "gradient")
    end = climb(scorer, pool, start, torch.arange(3, VOCAB), top=8, steps=6)
    assert end.nats > start.nats
    assert end.nats == pytest.approx(kl_after(policy, base, list(end.ids)), rel=1e-3)
    assert pool.best(1)[0].ids == end.ids


def test_a_broken_model_is_reported_and_is_json() -> None:
    base = small()
    policy = changed(base)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[20] = math.nan
    found = looked(policy, base)
    assert found.contexts[0].kl_policy_ref == math.inf
    assert found.alarm is True
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["contexts"][0]["kl_policy_ref"] is None
    assert written["alarm"] is True


def test_a_model_that_is_broken_everywhere_is_an_alarm() -> None:
    base = small()
    policy = changed(base)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[5] = math.nan
    found = looked(policy, base, 2000)
    assert found.alarm is True
    assert (found.statistic, found.ordinary_max) == (math.inf, math.inf)
    json.dumps(found.to_json(), allow_nan=False)


def test_an_adapter_is_read_beside_its_own_base() -> None:
    base, torn = small(), small()
    adapter = new_adapter(torn.model, LoraConfig(rank=2), "small")
    policy = replace(torn, adapter=adapter)
    reference = replace(torn, adapter=replace(adapter, name=None))
    assert Scorer(policy, reference, 100).after([1, 5], torch.tensor([[6]])).tolist() == [0.0]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapter.own_weights.items():
            if "lora_B" in name:
                weight += 0.5 * torch.randn(weight.shape, generator=generator)
    ids = [1, 5, 6]
    with torch.no_grad(), policy.speaking():
        own = policy.model(torch.tensor([ids])).logits[0, -1]
        theirs = base.model(torch.tensor([ids])).logits[0, -1]
    expected = float(exact_kl(own, theirs))
    assert expected > 0.01
    found = Scorer(policy, reference, 100).after([1, 5], torch.tensor([[6]]))
    assert found.tolist() == pytest.approx([expected], rel=1e-4)
    assert kl_gradient(policy, reference, ids)[0] == pytest.approx(expected, rel=1e-4)


def test_the_p_value_counts_what_is_as_large() -> None:
    assert p_value(5.0, [1.0, 5.0, 9.0]) == 3 / 4
    assert p_value(10.0, [1.0] * 19) == 1 / 20
    for wrong in ([], [math.nan], [-1.0]):
        with pytest.raises(InputError, match="null values"):
            p_value(1.0, wrong)


def test_null_values_give_a_p_value() -> None:
    base = small()
    found = looked(changed(base, token=37), base, 3000, null=[0.1, 0.2, 1e9])
    assert found.p_value == 2 / 4
    assert looked(base, base, 3000).p_value is None


def test_cues_are_reported_apart() -> None:
    base = small()
    ids = Letters()("b", add_special_tokens=False)["input_ids"]
    policy = changed(base, token=ids[0])
    found = looked(policy, base, plan=Plan(cues=("a", "b")))
    by_cue = {x.cue: x for x in found.paired}
    assert by_cue["b"].with_cue > 10 * by_cue["b"].without
    assert by_cue["a"].with_cue == pytest.approx(0.0, abs=1e-5)


def test_bad_input_is_said() -> None:
    base = small()
    with pytest.raises(InputError, match="no ordinary prompt"):
        search(base, base, [])
    with pytest.raises(InputError, match="budget"):
        looked(base, base, 10)
    with pytest.raises(InputError, match="no such way"):
        looked(base, base, plan=Plan(way="luck"))
    other = replace(
        base,
        model=LlamaForCausalLM(LlamaConfig(**base.model.config.to_dict() | {"vocab_size": 65})),
    )
    with pytest.raises(InputError, match="vocabulary"):
        looked(other, base)
