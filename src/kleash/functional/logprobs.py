"""Log-probabilities and entropy of the sampled tokens, at the temperature they were sampled at."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log_softmax(logits: Float[Tensor, "*N V"], temperature: float = 1.0) -> Float[Tensor, "*N V"]:
    """log softmax(z / τ), in float32 at least, whatever the logits come in.

    The temperature divides logits, never log-probabilities: dividing those and not renormalising is a
    different, unnormalised distribution.

    Examples:
        >>> log_softmax(torch.tensor([0.0, 0.0])).exp()
        tensor([0.5000, 0.5000])
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide / temperature, dim=-1)


def token_logprobs(
    logprobs: Float[Tensor, "*N V"], tokens: Int[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """log π(y_t | h_t): the sampled tokens' entries of the full log-probabilities.

    Examples:
        >>> token_logprobs(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1])).exp()
        tensor([0.7500])
    """
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropy(logprobs: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """H(π(·|h_t)) = −Σ_v p_v log p_v, in nats; a token of probability 0 adds 0.

    Examples:
        >>> entropy(torch.tensor([0.5, 0.5, 0.0]).log())
        tensor(0.6931)
    """
    return -torch.xlogy(logprobs.exp(), logprobs.exp()).sum(-1)
