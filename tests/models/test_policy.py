"""What two heads say of the same tokens, against their own logits."""

import math

import pytest
import torch
from torch import Tensor

from kleash.functional.chunks import TokenKL
from kleash.functional.kl import exact_kl
from kleash.functional.logprobs import entropy, log_softmax, token_logprobs
from kleash.models.policy import Head


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reading_is_what_the_logits_say(temperature: float) -> None:
    """Two widths, scales, biases and caps; pitfall 15: the temperature divides both sides."""
    torch.manual_seed(0)
    own = Head(torch.randn(11, 4), torch.randn(11), scale=0.5, softcap=2.0)
    ref = Head(torch.randn(11, 6), None, scale=2.0, softcap=None)
    hidden, ref_hidden, tokens = torch.randn(7, 4), torch.randn(7, 6), torch.randint(11, (7,))
    found = own.read(hidden, ref, ref_hidden, tokens, temperature)
    logits, ref_logits = own(hidden), ref(ref_hidden)
    logprobs = log_softmax(logits, temperature)
    expected = (
        token_logprobs(logprobs, tokens),
        token_logprobs(log_softmax(ref_logits, temperature), tokens),
        exact_kl(logits, ref_logits, temperature=temperature),
        entropy(logprobs),
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_loss_that_needs_no_reference_has_the_same_gradient_without_one() -> None:
    """A uniform reference costs no product, and is log V − H away."""
    own = Head(torch.randn(11, 4, requires_grad=True), torch.randn(11), softcap=2.0)
    ref = Head(torch.randn(11, 6))
    hidden, tokens = torch.randn(7, 4), torch.randint(11, (7,))

    def loss(read: TokenKL, rows: slice) -> Tensor:
        return read.logprobs.exp() + 0.1 * read.entropy

    found: list[Tensor] = []
    for head, width in ((ref, 6), (own.uniform(), 0)):
        total, read = own.read_loss(hidden, head, torch.randn(7, width), tokens, 0.7, loss)
        found.append(torch.autograd.grad(total, own.weight)[0])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(read.kl, math.log(11) - read.entropy)
