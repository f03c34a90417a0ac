"""The placement of the KL penalty, against the gradient of the enumerated sequence KL."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from kleash.functional.divergences import reverse_kl
from kleash.functional.rewards import kl_shaped_rewards

VOCAB, LENGTH = 3, 3


def _prefix_index(prefix: tuple[int, ...]) -> int:
    offset = sum(VOCAB**depth for depth in range(len(prefix)))
    return offset + sum(token * VOCAB**i for i, token in enumerate(reversed(prefix)))


@pytest.fixture
def logits() -> torch.Tensor:
    states = sum(VOCAB**depth for depth in range(LENGTH))
    generator = torch.Generator().manual_seed(3)
    return torch.randn(states, VOCAB, generator=generator, dtype=torch.double)


def _enumerate(
    logits: torch.Tensor, ref: torch.Tensor
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """(states, log-probabilities, those of the reference) of every sequence."""
    logprobs = torch.log_softmax(logits, -1)
    for tokens in itertools.product(range(VOCAB), repeat=LENGTH):
        states = [_prefix_index(tokens[:t]) for t in range(LENGTH)]
        chosen = torch.stack([logprobs[s, v] for s, v in zip(states, tokens, strict=True)])
        ref_chosen = torch.stack(
            [torch.log_softmax(ref, -1)[s, v] for s, v in zip(states, tokens, strict=True)]
        )
        yield states, chosen, ref_chosen


def _true_gradient(logits: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    terms = [
        chosen.sum().exp() * (chosen.sum() - ref_chosen.sum())
        for _, chosen, ref_chosen in _enumerate(logits, ref)
    ]
    return torch.autograd.grad(torch.stack(terms).sum(), logits)[0]


def _penalty_gradient(logits: torch.Tensor, ref: torch.Tensor, *, local: bool) -> torch.Tensor:
    """Expected gradient of the loss that training descends, with β = 1 and no reward."""
    logits = logits.clone().requires_grad_()
    per_state = reverse_kl(torch.log_softmax(logits, -1), torch.log_softmax(ref, -1))
    loss = torch.zeros((), dtype=torch.double)
    for states, chosen, _ in _enumerate(logits, ref):
        kl = per_state[states].unsqueeze(0)
        mask = torch.ones_like(kl, dtype=torch.bool)
        rewards = kl_shaped_rewards(torch.zeros(1, dtype=torch.double), kl.detach(), mask, 1.0)
        returns = rewards.flip(-1).cumsum(-1).flip(-1)[0]
        surrogate = -(returns * chosen).sum() + (kl.sum() if local else 0.0)
        loss = loss + chosen.sum().exp().detach() * surrogate
    return torch.autograd.grad(loss, logits)[0]


def test_reward_and_loss_together_are_the_gradient_of_the_sequence_kl(logits: torch.Tensor) -> None:
    ref = logits.roll(1, 0)
    truth = _true_gradient(logits, ref)
    assert torch.allclose(_penalty_gradient(logits, ref, local=True), truth, atol=1e-12)


def test_the_reward_alone_is_not_and_vanishes_at_the_last_step(logits: torch.Tensor) -> None:
    """An exact KL depends on the state, not on the token drawn there: as a reward it cannot pull at its own state."""
    ref = logits.roll(1, 0)
    alone = _penalty_gradient(logits, ref, local=False)
    assert not torch.allclose(alone, _true_gradient(logits, ref), atol=1e-2)
    last = slice(sum(VOCAB**depth for depth in range(LENGTH - 1)), None)
    assert torch.allclose(alone[last], torch.zeros_like(alone[last]), atol=1e-15)


def test_score_stands_on_the_last_real_token_and_padding_never_matters() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.tensor([[0.1, 0.2, float("nan")], [0.1, 0.2, 0.4]])
    rewards = kl_shaped_rewards(torch.tensor([1.0, 2.0]), kl, mask, 0.5)
    assert torch.allclose(rewards, torch.tensor([[-0.1, 1.0, 0.0], [-0.1, -0.2, 2.0]]))
