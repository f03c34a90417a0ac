"""A table is read by the code of language models as what it is."""

import torch

from kleash.lab.mdp import MDP, golden
from kleash.lab.tabular import Table, table_reward, tabular, value_column
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample

SMALL = MDP(
    3,
    3,
    torch.randn(13, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double),
    torch.arange(27, dtype=torch.double),
)


def _starts(count: int, mdp: MDP) -> torch.Tensor:
    return torch.full((count, 1), mdp.vocab)


def test_hidden_states_and_head_give_the_logits_of_every_prefix() -> None:
    policy, tokens = tabular(SMALL), SMALL.tokens()
    start = _starts(len(tokens), SMALL)
    hidden = policy.hidden(start, torch.ones_like(start, dtype=torch.bool), tokens)

    torch.testing.assert_close(
        policy.head(hidden.flatten(0, 1)).view(27, 3, 3).double(),
        SMALL.ref_logits[SMALL.states()],
        rtol=0,
        atol=1e-6,
    )


def test_with_a_cache_it_says_the_same_as_without() -> None:
    """What samples is what is metered."""
    policy = tabular(golden())
    check = RolloutConfig(num_prompts=8, group_size=4, max_new_tokens=4)
    rollout = sample(policy, [""] * 8, check, torch.Generator().manual_seed(0))
    law = torch.log_softmax(golden().ref_logits, -1)
    row = torch.zeros(len(rollout.response_ids), dtype=torch.long)
    for t in range(4):
        token = rollout.response_ids[:, t]
        torch.testing.assert_close(
            rollout.sampled_logprobs[:, t].double(), law[row, token], rtol=0, atol=1e-5
        )
        row = 8 * row + 1 + token


def test_it_samples_the_problems_law() -> None:
    config = RolloutConfig(num_prompts=1, group_size=20_000, max_new_tokens=3)
    rollout = sample(tabular(SMALL), [""], config, torch.Generator().manual_seed(0))
    index = rollout.response_ids @ torch.tensor([9, 3, 1])
    law = SMALL.logprobs(SMALL.ref_logits).sum(-1).exp()
    counts = index.bincount(minlength=27) / 20_000

    assert bool(((counts - law).abs() <= 5 * (law / 20_000).sqrt() + 1e-4).all())


def test_the_reward_of_a_response_is_that_of_its_sequence() -> None:
    texts = [" ".join(map(str, row)) for row in SMALL.tokens().tolist()]

    assert table_reward(SMALL).score([""] * 27, texts) == list(range(27))


def test_the_value_of_a_prefix_is_its_own_column() -> None:
    policy, head = tabular(SMALL), value_column(SMALL)
    assert isinstance(policy.model, Table)
    with torch.no_grad():
        policy.model.rows[:, -1] = torch.arange(13.0)
    start = _starts(27, SMALL)
    hidden = policy.hidden(start, start > 0, SMALL.tokens())

    assert torch.equal(head(hidden), SMALL.states().float())
    assert not any(p.requires_grad for p in head.parameters())


def test_the_head_is_the_models_own() -> None:
    policy = tabular(SMALL)
    start = _starts(1, SMALL)
    cached = policy.model(input_ids=start, past_key_values=policy.new_cache(1)).logits[0]

    torch.testing.assert_close(policy.head(policy.model.rows[:1]), cached)
