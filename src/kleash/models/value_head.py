"""The critic: a linear read-out of the policy's hidden states."""

from torch import Tensor, nn


class ValueHead(nn.Module):
    """V(h_t) = wᵀ h_t + b, zero at the start, so that the first advantages are the returns themselves.

    Examples:
        >>> import torch
        >>> ValueHead(4)(torch.ones(2, 4))
        tensor([0., 0.], grad_fn=<SqueezeBackward1>)
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values [...] of hidden states [..., H]."""
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)
