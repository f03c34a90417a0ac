"""How much of the golden problem's gain a natural gradient loses by what it has not visited: every row solved exactly.

    python benchmarks/natural_visits.py

Whole-response returns R − β·Σu about the mean of the group's others, F of each visited row and its damping inverted
densely, at most α of Newton's step within a region of 0.01 nats per token; α falls to 0. One seed.
"""

import torch

from kleash.lab.closed_form import GROUP_SIZE, standing
from kleash.lab.mdp import golden

BETA, RADIUS = 0.2, 0.01
CASES = (
    *((512, 1500, 0.2, 1.0), (512, 1500, 1.0, 1.0), (512, 1500, 0.02, 0.25)),
    *((2048, 1500, 0.2, 0.25), (8192, 800, 0.5, 0.5), (32_768, 100, 1.0, 1.0)),
)
"""Responses a step, steps, damping in visits, α."""


def lost(responses: int, steps: int, damping: float, most: float) -> float | None:
    """Share of the attainable gain that is lost."""
    mdp, draw = golden(), torch.Generator().manual_seed(0)
    states, tokens, logits = mdp.states(), mdp.tokens(), mdp.ref_logits.clone()
    reference = mdp.logprobs(logits).sum(-1)
    for step in range(steps):
        share = most * (1 - step / steps)
        own = mdp.logprobs(logits).sum(-1)
        drawn = torch.multinomial(own.exp(), responses, replacement=True, generator=draw)
        worth = (mdp.rewards - BETA * (own - reference))[drawn].view(-1, GROUP_SIZE)
        advantages = (worth - worth.mean(1, keepdim=True)) * GROUP_SIZE / (GROUP_SIZE - 1)
        each = advantages.flatten().repeat_interleave(mdp.length)
        rows, taken = states[drawn].flatten(), tokens[drawn].flatten()
        q = logits.softmax(-1)
        slope = torch.zeros_like(q).index_put_((rows, taken), each, accumulate=True)
        slope -= q * slope.sum(-1, keepdim=True)
        visits = rows.bincount(minlength=mdp.num_prefixes)[:, None, None]
        fisher = visits * (torch.diag_embed(q) - q[:, :, None] * q[:, None, :])
        fisher = fisher + damping * torch.eye(mdp.vocab, dtype=torch.double)
        direction = torch.linalg.solve(fisher, slope)
        kl = float((direction * (fisher @ direction[..., None])[..., 0]).sum()) / 2 / len(rows)
        length = min((RADIUS * share**2 / max(kl, 1e-30)) ** 0.5, share / BETA)
        logits += length * direction
    return standing(mdp, logits, BETA).gain_lost


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        print(*case, f"{lost(*case):.3%}", flush=True)
