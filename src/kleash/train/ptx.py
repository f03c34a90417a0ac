"""The pretraining loss beside the reward's: J + γ E_D[log π(x)] over texts that the policy is not to forget.

PPO-ptx of Ouyang et al. 2022, arXiv 2203.02155: a KL penalty holds a policy to its reference on its own responses, and
says nothing of texts that it never writes; this term does.
"""

import torch
from torch import Tensor

from kleash.errors import InputError
from kleash.models.policy import LanguageModel
from kleash.train.data import Shuffled, load_rows
from kleash.train.ptx_config import PtxConfig


class Pretraining:
    """Texts to be kept likely, some of them at each gradient step.

    Args:
        texts: all of them.
        config: how many, how long, and γ.
        policy: by whose tokenizer.
        generator: of their order.

    Raises:
        InputError: too few of them have two tokens, of which one is predicted.
    """

    def __init__(
        self, texts: list[str], config: PtxConfig, policy: LanguageModel, generator: torch.Generator
    ) -> None:
        self.config = config
        rows = {text: _tokens(policy, text, config.max_tokens) for text in texts}
        self.rows = {text: row for text, row in rows.items() if len(row) > 1}
        if len(self.rows) < config.num_texts:
            raise InputError(
                "there are too few texts for a pretraining loss",
                expected=f"ptx.num_texts = {config.num_texts} different ones, of two tokens and more",
                got=f"{len(self.rows)} in ptx.data",
            )
        self.generator = generator
        self.batches = Shuffled(list(self.rows), config.num_texts, generator)

    def loss(self, policy: LanguageModel) -> Tensor:
        """−mean log π of the next texts' tokens but their first, nats per token, with its gradient; γ is not in it."""
        rows = [self.rows[text] for text in next(self.batches)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [policy.pad_id] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[t < len(row) for t in range(1, longest)] for row in rows])
        ids, mask = ids.to(policy.device), mask.to(policy.device)
        first, rest = ids[:, :1], ids[:, 1:]
        start = torch.ones_like(first, dtype=torch.bool)
        hidden = policy.hidden(first, start, rest, mask)[mask]
        nobody = policy.head.uniform(), hidden.new_zeros(len(hidden), 0)
        loss, _ = policy.head.read_loss(
            hidden, *nobody, rest[mask], 1.0, lambda read, _: -read.logprobs / len(hidden)
        )
        return loss


def load_pretraining(
    config: PtxConfig, policy: LanguageModel, generator: torch.Generator
) -> Pretraining | None:
    """The texts that the configuration names; None where it names none.

    Raises:
        InputError: they can't be read, or are too few.
    """
    if config.data is None:
        return None
    return Pretraining(load_rows(config.data, "text"), config, policy, generator)


def _tokens(policy: LanguageModel, text: str, most: int) -> list[int]:
    """A text's tokens, and its end where that is not cut off."""
    row = [int(token) for token in policy.tokenizer(text)["input_ids"]]
    return [*row, int(policy.tokenizer.eos_token_id)][:most]
