"""A policy that is a table, as a language model: what trains one trains the other, by the same code.

Every prefix of an enumerable problem has its row of logits and its value. A prompt is the empty prefix; a response is
its tokens as digits, so that samplers, rewards, meters and losses find what they find in any model.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from kleash.errors import RewardError
from kleash.lab.mdp import MDP
from kleash.models.policy import LanguageModel
from kleash.models.value_head import ValueHead
from kleash.rewards.scorers import Scorer


class Table(nn.Module):
    """Rows [S, V + 1]: a prefix's logits and its value, with the interface of a transformers model.

    Args:
        mdp: the problem, whose reference is where the table starts; values start at 0.
    """

    def __init__(self, mdp: MDP) -> None:
        super().__init__()
        self.mdp = mdp
        rows = torch.cat([mdp.ref_logits, torch.zeros(mdp.num_prefixes, 1)], -1).float()
        self.rows = nn.Parameter(rows)
        self.head = nn.Linear(mdp.vocab + 1, mdp.vocab, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(mdp.vocab, mdp.vocab + 1))
        self.head.requires_grad_(False)
        self.config = SimpleNamespace(vocab_size=mdp.vocab, hidden_size=mdp.vocab + 1)
        self.generation_config = SimpleNamespace(eos_token_id=None)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.rows.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.rows.dtype

    @property
    def logits(self) -> Tensor:
        """[S, V], float64, for enumeration."""
        return self.rows.detach()[:, :-1].double()

    def get_output_embeddings(self) -> nn.Linear:
        """The head: it reads the logits off a row."""
        return self.head

    def base_model(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Rows [B, 1 + T, V + 1] of a start token and T tokens."""
        return SimpleNamespace(last_hidden_state=F.embedding(self._prefixes(input_ids), self.rows))

    def forward(self, input_ids: Tensor, past_key_values: Any, **_: Any) -> SimpleNamespace:
        """Logits [B, 1, V] after all tokens so far, which the cache keeps as keys of width 1."""
        keys = input_ids[:, None, :, None].to(self.dtype)
        seen = past_key_values.update(keys, keys, 0)[0][:, 0, :, 0].long()
        return SimpleNamespace(
            logits=self.head(F.embedding(self._prefixes(seen)[:, -1:], self.rows))
        )

    def _prefixes(self, input_ids: Tensor) -> Tensor:
        """The row of each prefix: those of a depth follow one another, as numbers to the base V."""
        vocab = self.mdp.vocab
        rows = torch.zeros_like(input_ids)
        for t in range(1, input_ids.shape[1]):
            # The children of row i are the rows V·i + 1 … V·i + V.
            rows[:, t] = vocab * rows[:, t - 1] + 1 + input_ids[:, t]
        return rows


class Digits:
    """A tokenizer: every prompt is the start token, whose number is V; a response is its tokens' numbers."""

    pad_token_id = 0
    eos_token_id = None

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, text: str) -> dict[str, list[int]]:
        """The token ids of a prompt."""
        return {"input_ids": [self.vocab]}

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text; the start token is none."""
        return " ".join(str(token) for token in tokens if token != self.vocab)

    def batch_decode(self, rows: Sequence[Sequence[int]], **_: Any) -> list[str]:
        """Rows of tokens as texts."""
        return [self.decode(row) for row in rows]


def tabular(mdp: MDP) -> LanguageModel:
    """The reference of a problem, as a policy that can be trained.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> policy = tabular(golden())
        >>> start, response = torch.tensor([[8]]), torch.tensor([[3, 1, 0, 7]])
        >>> policy.head(policy.hidden(start, start > 0, response)[0])[1, :3].detach()  # after 3: the problem's row 4
        tensor([-1.4572,  1.4966, -1.3963])
    """
    return LanguageModel("table", Table(mdp).eval(), Digits(mdp.vocab))


def value_column(mdp: MDP) -> ValueHead:
    """The value head of a table: it reads the value off a row, and has nothing to learn itself."""
    head = ValueHead(mdp.vocab + 1)
    with torch.no_grad():
        head.linear.weight[0, -1] = 1.0
    head.requires_grad_(False)
    return head


def table_reward(mdp: MDP) -> Scorer:
    """The problem's reward of a response's text."""

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        rows = torch.tensor([[int(token) for token in text.split()] for text in responses])
        if rows.shape[1] != mdp.length:
            raise RewardError("a response is not a sequence of the problem", got=responses[0])
        powers = mdp.vocab ** torch.arange(mdp.length - 1, -1, -1)
        return mdp.rewards[rows @ powers].tolist()

    return Scorer(name="table", score=score)
