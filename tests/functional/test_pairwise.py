"""Both ways at once, against the definitions in double precision and against enumeration of whole responses."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from kleash.functional.divergences import forward_kl, jensen_shannon, reverse_kl
from kleash.functional.logprobs import entropy
from kleash.functional.pairwise import Pairwise, pairwise


def drawn(count: int, vocab: int, dtype: torch.dtype = torch.double) -> tuple[Tensor, ...]:
    logits, other = (3 * torch.randn(count, vocab, dtype=dtype) for _ in range(2))
    return logits, other, torch.randint(vocab, (count,)), torch.arange(count) % 3 == 0


def defined(logits: Tensor, other: Tensor) -> dict[str, Tensor]:
    q, p = logits.log_softmax(-1), other.log_softmax(-1)
    return {
        "kl": reverse_kl(q, p),
        "other_kl": forward_kl(q, p),
        "jensen_shannon": jensen_shannon(q, p),
        "entropy": entropy(q),
        "other_entropy": entropy(p),
    }


@pytest.mark.parametrize("vocab", [2, 7, 300])
def test_each_column_is_what_it_is_called(vocab: int) -> None:
    logits, other, tokens, starts = drawn(9, vocab)
    read, _ = pairwise(logits, other, tokens, starts)
    for name, expected in defined(logits, other).items():
        torch.testing.assert_close(getattr(read, name), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(read.logprobs, logits.log_softmax(-1)[range(9), tokens])
    torch.testing.assert_close(read.other_logprobs, other.log_softmax(-1)[range(9), tokens])


@pytest.mark.parametrize(
    "far", [-torch.inf, -1e4, -200.0, 200.0], ids=["impossible", "-1e4", "-200", "200"]
)
@pytest.mark.parametrize("side", [0, 1])
def test_tokens_that_one_side_rules_out(far: float, side: int) -> None:
    logits, other, tokens, starts = drawn(6, 5)
    (logits, other)[side][2, 3] = far
    read, _ = pairwise(logits, other, tokens, starts)
    for name, expected in defined(logits, other).items():
        torch.testing.assert_close(getattr(read, name), expected, rtol=1e-11, atol=1e-12)
    assert not any(column.isnan().any() for column in read)


def test_float32_is_near_double_precision_however_near_the_two_are() -> None:
    logits, _, tokens, starts = drawn(12, 400)
    for distance in (1.0, 1e-2, 1e-4):
        other = logits + distance * torch.randn_like(logits)
        exact = defined(logits, other)
        read, _ = pairwise(logits.float(), other.float(), tokens, starts)
        for name in ("kl", "other_kl", "jensen_shannon"):
            # Logits of float32 are known to 1e-6 or so: what KL can be known to follows.
            known = 4e-6 * distance + 2e-8
            torch.testing.assert_close(
                getattr(read, name).double(), exact[name], rtol=1e-4, atol=known
            )


def test_the_same_model_twice_is_exactly_nothing() -> None:
    logits, _, tokens, starts = drawn(5, 50, torch.float32)
    read, carried = pairwise(logits, logits.clone(), tokens, starts)
    for name in ("kl", "other_kl", "jensen_shannon", "to_mixture"):
        assert torch.equal(getattr(read, name), torch.zeros(5)), name
    assert carried == 0.0


def test_rows_in_pieces_are_the_rows() -> None:
    logits, other, tokens, starts = drawn(11, 6)
    whole, _ = pairwise(logits, other, tokens, starts)
    parts: list[Pairwise] = []
    carried = 0.0
    for rows in (slice(0, 1), slice(1, 5), slice(5, 11)):
        part, carried = pairwise(
            logits[rows], other[rows], tokens[rows], starts[rows], carried=carried
        )
        parts.append(part)
    for name, *columns in zip(Pairwise._fields, whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat(columns[1:]), columns[0], rtol=1e-14, atol=0, msg=name)


def test_what_is_gained_is_lost_elsewhere() -> None:
    logits, other, tokens, starts = drawn(8, 20)
    gained = torch.zeros(20, dtype=torch.double)
    pairwise(logits, other, tokens, starts, gained=gained)
    expected = (logits.softmax(-1) - other.softmax(-1)).sum(0)
    torch.testing.assert_close(gained, expected, rtol=1e-12, atol=1e-14)
    assert abs(float(gained.sum())) < 1e-12


def test_the_way_to_the_mixture_adds_up_to_the_jensen_shannon_divergence_of_responses() -> None:
    """By enumeration of all responses of three tokens: E_Q Σ_t = KL(Q‖½(Q + P)), and so from the other side."""
    vocab, length = 3, 3
    prefixes = [p for n in range(length) for p in itertools.product(range(vocab), repeat=n)]
    at = {prefix: i for i, prefix in enumerate(prefixes)}
    tables = [2 * torch.randn(len(prefixes), vocab, dtype=torch.double) for _ in range(2)]
    logs = [table.log_softmax(-1) for table in tables]
    responses = list(itertools.product(range(vocab), repeat=length))
    rows = [[at[y[:t]] for t in range(length)] for y in responses]
    flat, tokens = torch.tensor(rows), torch.tensor(responses)
    joint = [log[flat, tokens].sum(-1) for log in logs]
    mixture = torch.logaddexp(joint[0], joint[1]) - math.log(2)
    expected = sum(0.5 * (x.exp() * (x - mixture)).sum() for x in joint)
    found = torch.zeros((), dtype=torch.double)
    starts = torch.arange(flat.numel()) % length == 0
    for own, other in ((0, 1), (1, 0)):
        logits, theirs = (tables[side][flat.flatten()] for side in (own, other))
        read, _ = pairwise(logits, theirs, tokens.flatten(), starts)
        along = read.to_mixture.view(-1, length).sum(-1)
        found += 0.5 * (joint[own].exp() * along).sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert 0 < float(found) < math.log(2)


@pytest.mark.parametrize("carried", [-200.0, -50.0, -20.0, 0.0, 16.0, 18.0, 20.0, 50.0, 200.0])
@pytest.mark.parametrize("far", [-30.0, -20.0, 0.0, 20.0, 30.0])
def test_the_way_to_the_mixture_is_a_number_however_sure_it_is_whose_the_response_is(
    carried: float, far: float
) -> None:
    """In float32 a weight may be 1 where a token is ruled out by the sampler: against logarithms in double."""
    logits = torch.tensor([[2.0, 1.0 + far, 1.0, 0.0]])
    other = torch.tensor([[1.5, 1.0, 1.2, 0.3]])
    tokens, starts = torch.tensor([0]), torch.tensor([False])
    read, _ = pairwise(logits, other, tokens, starts, carried=carried)
    q, p = (x.double().log_softmax(-1) for x in (logits, other))
    sure = torch.tensor(carried).double()
    weights = torch.nn.functional.logsigmoid(sure), torch.nn.functional.logsigmoid(-sure)
    expected = reverse_kl(q, torch.logaddexp(weights[0] + q, weights[1] + p))
    torch.testing.assert_close(read.to_mixture.double(), expected, rtol=1e-4, atol=2e-6)
