"""DPO on a problem that can be enumerated, to stand beside what the training loop makes of it.

It has no rollouts: pairs are drawn from the reference, the better one is named by Bradley and Terry's law in reward,
and a table is fitted to them. `kleash dpo` trains language models by TRL, which takes no table for a model.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kleash.functional.losses import dpo_loss
from kleash.lab.mdp import MDP


def fit_preferences(
    mdp: MDP,
    beta: float,
    seed: int,
    *,
    num_pairs: int,
    steps: int,
    learning_rate: float,
    observer: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """The table that DPO makes of fresh pairs at every step, [S, V] log-probabilities.

    Args:
        mdp: the problem.
        beta: β.
        seed: of the pairs.
        num_pairs: at each step.
        steps: of Adam, whose rate falls to 0.
        learning_rate: at first.
        observer: told each step.
    """
    draw = torch.Generator().manual_seed(seed)
    reference = mdp.logprobs(mdp.ref_logits).sum(-1)
    law, states, tokens = reference.exp(), mdp.states(), mdp.tokens()
    table = torch.nn.Parameter(mdp.ref_logits.clone())
    optimizer = torch.optim.Adam([table], lr=learning_rate, fused=True)
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - (step - 1) / steps)
        pairs = torch.multinomial(law, 2 * num_pairs, replacement=True, generator=draw)
        left, right = pairs.view(2, num_pairs)
        odds = torch.sigmoid(mdp.rewards[left] - mdp.rewards[right])
        is_better = torch.rand(num_pairs, generator=draw, dtype=odds.dtype) < odds
        chosen, rejected = torch.where(is_better, left, right), torch.where(is_better, right, left)
        logprobs = torch.log_softmax(table, -1)
        u_chosen, u_rejected = (
            logprobs[states[rows], tokens[rows]].sum(-1) - reference[rows]
            for rows in (chosen, rejected)
        )
        loss = dpo_loss(u_chosen, u_rejected, beta).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        observer(step)
    return torch.log_softmax(table.detach(), -1)
