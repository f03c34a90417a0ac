"""A small problem that can be enumerated: every prompt's answer is one of V^L sequences.

On it the KL-regularised optimum, every KL, every estimator and every gradient are finite sums. What is proved here
against them holds for the code that runs on language models, because it is the same code.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kleash.errors import InputError

MAX_NUMBERS = 2**22
"""Most numbers V · L · V^L in a table of every sequence's rows: beyond this, enumeration is no matter of seconds."""
LEAST_LOGPROB = math.log(torch.finfo(torch.float64).tiny)
"""Below this no float holds a sequence's probability, and what is multiplied by it would be lost."""


@dataclass(frozen=True, slots=True)
class MDP:
    """Sequences of `length` tokens from a vocabulary of `vocab`, a reference and a reward for each.

    A policy is a table of logits [S, V], one row for each of the S = (V^L − 1)/(V − 1) prefixes, ordered by depth and
    then as base-V numbers; a reward is one float per sequence, sequences as base-V numbers.
    """

    vocab: int
    length: int
    ref_logits: Tensor
    """[S, V]."""
    rewards: Tensor
    """[N]."""

    @property
    def num_sequences(self) -> int:
        """N = V^L."""
        return self.vocab**self.length

    @property
    def num_prefixes(self) -> int:
        """S = 1 + V + … + V^{L−1}."""
        return sum(self.vocab**depth for depth in range(self.length))

    def tokens(self) -> Tensor:
        """Every sequence, [N, L]."""
        powers = self.vocab ** torch.arange(self.length - 1, -1, -1)
        return torch.arange(self.num_sequences)[:, None] // powers % self.vocab

    def states(self) -> Tensor:
        """The prefix that each token of every sequence is drawn after, a row of the logits: [N, L]."""
        depths = torch.arange(self.length)
        first = torch.tensor([sum(self.vocab**i for i in range(d)) for d in range(self.length)])
        prefix = torch.arange(self.num_sequences)[:, None] // self.vocab ** (self.length - depths)
        return first + prefix

    def logprobs(self, logits: Tensor) -> Tensor:
        """log π(y_t|h_t) of every token of every sequence, [N, L]."""
        return torch.log_softmax(logits, -1)[self.states(), self.tokens()]


def golden() -> MDP:
    """The reference problem of the acceptance tests: V = 8, L = 4, no random number in it.

    Examples:
        >>> mdp = golden()
        >>> mdp.num_sequences, mdp.num_prefixes
        (4096, 585)
    """
    vocab, length = 8, 4
    states = torch.arange(585, dtype=torch.float64)[:, None]
    symbols = torch.arange(vocab, dtype=torch.float64)
    logits = 1.5 * torch.sin(12.9898 * (states + 1) + 78.233 * (symbols + 1))
    shell = MDP(vocab, length, logits, torch.empty(0))
    y, index = shell.tokens(), torch.arange(shell.num_sequences, dtype=torch.float64)
    rewards = (
        torch.sin(0.7 * (index + 1))
        + 0.5 * torch.cos(1.3 * y.sum(-1).double())
        + 0.25 * (y[:, 0] == y[:, 3])
    )
    return MDP(vocab, length, logits, rewards)


def tilt(mdp: MDP, weight: float) -> Tensor:
    """The policy π_λ ∝ π_ref exp(λR) over sequences, by one soft Bellman backup.

    V(h) = log Σ_a π_ref(a|h) exp(Q(h, a)) from Q = λR at the last token, π_λ(a|h) = π_ref(a|h) exp(Q − V); V at the
    root is log Z. The family is what mirror descent on E[R] − β·KL(π‖π_ref) moves in, from π_ref to the optimum.

    Args:
        mdp: the problem.
        weight: λ, nats per unit of reward: 0 is the reference, below 0 what is worst is likeliest.

    Returns:
        [S, V] log-probabilities, which are logits.

    Raises:
        InputError: λ is so far from 0 that a sequence's probability underflows.

    Examples:
        >>> mdp = golden()
        >>> log_law = mdp.logprobs(tilt(mdp, -5.0)).sum(-1)
        >>> round(float(log_law.exp() @ mdp.rewards), 6)  # the reference's mean is 0.022531
        -1.255384
    """
    what = f"the tilt at λ = {weight:g}"
    return reweighed(mdp, weight * mdp.rewards, what, do="take a λ nearer to 0")


def optimum(mdp: MDP, beta: float) -> Tensor:
    """The policy that maximises E[R] − β·KL(π‖π_ref): the tilt at λ = 1/β.

    Its law over sequences is π_ref exp(R/β)/Z (Korbak et al. 2022, arXiv 2205.11275), and its value is
    J* = β log Z.

    Returns:
        [S, V] log-probabilities, which are logits.

    Raises:
        InputError: β is so small that a sequence's probability underflows.
    """
    weight = 1 / beta if beta else math.inf
    return reweighed(
        mdp, weight * mdp.rewards, f"the optimum at β = {beta:g}", do="take a larger β"
    )


def reweighed(mdp: MDP, log_weights: Tensor, what: str, *, do: str) -> Tensor:
    """The policy whose law over sequences is π_ref times some weights, normalised.

    Args:
        mdp: the problem.
        log_weights: [N].
        what: it is, for the error.
        do: what mends it, for the error.

    Returns:
        [S, V] log-probabilities, which are logits.

    Raises:
        InputError: a sequence's probability underflows.
    """
    reference = torch.log_softmax(mdp.ref_logits, -1)
    values, rows = log_weights.view(-1, mdp.vocab), []
    for depth in range(mdp.length - 1, -1, -1):
        first = sum(mdp.vocab**i for i in range(depth))
        tilted = reference[first : first + mdp.vocab**depth] + values
        rows.append(torch.log_softmax(tilted, -1))
        values = tilted.logsumexp(-1).view(-1, mdp.vocab) if depth else values
    return _supported(mdp, torch.cat(rows[::-1]), what, do=do)


def _supported(mdp: MDP, logits: Tensor, what: str, *, do: str = "") -> Tensor:
    """The logits, where they give every sequence a probability that a float holds."""
    least = float(mdp.logprobs(logits).sum(-1).min())
    if not least >= LEAST_LOGPROB:  # also where it is no number
        raise InputError(
            f"{what} is too far out to be enumerated",
            expected=f"log-probabilities of sequences above {LEAST_LOGPROB:.0f}",
            got=f"{least:.4g}",
            do=do,
        )
    return logits


def load_mdp(path: Path) -> MDP:
    """Reads {"vocab", "length", "ref_logits", "rewards"}.

    Raises:
        InputError: the file is not that.
    """
    data = _read(path)
    vocab, length = (_whole(data, path, name) for name in ("vocab", "length"))
    # The logarithm first: a power of two long numbers would itself take minutes.
    if (
        vocab < 2
        or length < 1
        or length * math.log2(vocab) > math.log2(MAX_NUMBERS)
        or length * vocab ** (length + 1) > MAX_NUMBERS
    ):
        raise InputError(
            f"{path} is not a problem that can be enumerated",
            expected=f"vocab ≥ 2, length ≥ 1, length · vocab^(length + 1) at most {MAX_NUMBERS:,}",
            got=f"vocab {vocab}, length {length}"[:80],
        )
    prefixes = sum(vocab**depth for depth in range(length))
    ref_logits = _table(data, path, "ref_logits", (prefixes, vocab))
    mdp = MDP(vocab, length, ref_logits, _table(data, path, "rewards", (vocab**length,)))
    _supported(mdp, ref_logits, f"{path}: the reference")
    return mdp


def load_policy(path: Path, mdp: MDP) -> Tensor:
    """Reads a table of logits in the shape of the problem's `ref_logits`, bare or as {"logits"}.

    Raises:
        InputError: the file is not that.
    """
    data = _read(path, bare=True)
    table = _table(data, path, "logits", (mdp.num_prefixes, mdp.vocab))
    return _supported(mdp, table, f"{path}: the policy")


def _read(path: Path, *, bare: bool = False) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read {path}", expected="a JSON file", got=str(error)[:200]
        ) from error
    if bare and isinstance(data, list):
        return {"logits": data}
    if not isinstance(data, dict):
        raise InputError(
            f"{path} holds no problem", expected="a JSON object", got=type(data).__name__
        )
    return data


def _whole(data: dict[str, Any], path: Path, name: str) -> int:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(
            f"{path}: {name} is wrong",
            expected="a whole number",
            got=repr(value)[:80] if name in data else "no such key",
        )
    return value


def _table(data: dict[str, Any], path: Path, name: str, shape: tuple[int, ...]) -> Tensor:
    """The numbers under a name, in the shape that they must have."""
    got = "no such key"
    if name in data:
        table = _numbers(data[name])
        if table is None:
            got = "something else than rows of one length that hold numbers"
        elif table.shape != shape:
            got = f"numbers in the shape {' × '.join(map(str, table.shape))}"
        elif not bool(table.isfinite().all()):
            got = f"{int((~table.isfinite()).sum())} that are not finite"
        else:
            return table
    raise InputError(
        f"{path}: {name} is wrong",
        expected=f"finite numbers in the shape {' × '.join(map(str, shape))}",
        got=got,
    )


def _numbers(value: Any) -> Tensor | None:
    """A tensor of nested lists of numbers; None where they are not that. JSON's true is no number."""
    try:
        return None if _holds_bool(value) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError):
        return None


def _holds_bool(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_bool(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return isinstance(value, bool)
