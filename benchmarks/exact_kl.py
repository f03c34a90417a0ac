"""What exact KL costs: time and memory of `linear_kl` against the plain formulas, sampling only, and TRL.

    OMP_NUM_THREADS=1 python benchmarks/exact_kl.py [--vocab 151936 --hidden 896 --tokens 2048 --rounds 3]

Every figure is a ratio within one run: times are medians over interleaved rounds, forward and backward; memory is what
a process of its own peaks at above its inputs and their gradients. TRL is measured where it is installed.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.functional.chunks import (
    Chunk,
    Constants,
    Gradients,
    Policy,
    TokenKL,
    accumulate,
    blocks,
    chunks,
)
from kleash.functional.linear_kl import linear_kl, linear_kl_loss

BETA = 0.1


class Case(NamedTuple):
    """Two heads and what they are applied to; the loss is −A·log π + β·KL."""

    hidden: Tensor
    weight: Tensor
    ref_hidden: Tensor
    ref_weight: Tensor
    tokens: Tensor
    advantages: Tensor


def make_case(tokens: int, vocab: int, hidden: int) -> Case:
    """Heads about a nat per token apart, the same each time."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(tokens, hidden, generator=g)
    weight = torch.randn(vocab, hidden, generator=g).mul_(hidden**-0.5 * 2)
    ref_weight = weight + 0.5 * hidden**-0.5 * torch.randn(vocab, hidden, generator=g)
    return Case(
        h.requires_grad_(),
        weight.requires_grad_(),
        h.detach().clone(),
        ref_weight,
        torch.randint(vocab, (tokens,), generator=g),
        torch.randn(tokens, generator=g),
    )


def plain(case: Case) -> None:
    """Every logit held."""
    own = torch.log_softmax(case.hidden @ case.weight.t(), -1)
    with torch.no_grad():
        theirs = torch.log_softmax(case.ref_hidden @ case.ref_weight.t(), -1)
    logprobs = own.gather(-1, case.tokens[:, None])[:, 0]
    kl = (own.exp() * (own - theirs)).sum(-1)
    (BETA * kl - case.advantages * logprobs).sum().backward()


def fused(case: Case) -> None:
    """The gradient on the way."""

    def loss(read: TokenKL, rows: slice) -> Tensor:
        return BETA * read.kl - case.advantages[rows] * read.logprobs

    linear_kl_loss(*case[:5], loss)[0].backward()


def per_token(case: Case) -> None:
    """Per-token outputs, any loss after: the chunks are made again."""
    read = linear_kl(*case[:5])
    (BETA * read.kl - case.advantages * read.logprobs).sum().backward()


def sampled(case: Case) -> None:
    """The same machine without the KL: both log-probabilities of the sampled tokens, and the policy's gradient."""
    hidden, weight = case.hidden.detach(), case.weight.detach()
    policy = Policy(hidden, weight, None)
    given = Constants(case.ref_hidden, case.ref_weight, None, case.tokens, 1.0, None, None)
    grads = Gradients(torch.zeros_like(hidden), torch.zeros_like(weight), None)
    for rows, chunk in chunks(policy, given):
        accumulate(grads, rows, _sampled(chunk, -case.advantages[rows]), policy)
    case.hidden.grad, case.weight.grad = grads.hidden, grads.weight


def _sampled(chunk: Chunk, upstream: Tensor) -> Tensor:
    for rows in blocks(len(chunk.own), len(chunk.scratch)):
        z, r, tokens = chunk.own[rows], chunk.theirs[rows], chunk.tokens[rows]
        z -= z.logsumexp(-1, keepdim=True)
        chunk.read.logprobs[rows] = z.gather(-1, tokens)[:, 0]
        lse = r.logsumexp(-1, keepdim=True)
        chunk.read.ref_logprobs[rows] = (r.gather(-1, tokens) - lse)[:, 0]
        a = upstream[rows, None]
        z.exp_().mul_(-a).scatter_add_(-1, tokens, a)
    return chunk.own


def trl_exact(case: Case) -> None:
    """TRL's chunked reverse KL and its chunked log-probabilities."""
    divergence = import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    logprob = import_module("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    kl, _ = divergence.apply(
        case.hidden, case.weight, None, case.ref_hidden, case.ref_weight, None, 1.0
    )
    logprobs = logprob.apply(
        case.hidden, case.weight, None, case.tokens, 1.0, 32768, None, 1.0, ()
    )[0]
    (BETA * kl - case.advantages * logprobs).sum().backward()


VARIANTS: dict[str, Callable[[Case], None]] = {
    "linear_kl_loss": fused,
    "linear_kl": per_token,
    "sampled only": sampled,
    "plain": plain,
    "TRL exact": trl_exact,
}


def available() -> list[str]:
    """The variants that can run here."""
    has_trl = find_spec("trl") is not None
    return [name for name in VARIANTS if has_trl or not name.startswith("TRL")]


def peak(make: Callable[[], Case], name: str, queue: Any) -> None:
    """Bytes above inputs and gradients, in a process of its own."""
    case = make()
    case.hidden.grad, case.weight.grad = (torch.zeros_like(x) for x in case[:2])
    for grad in (case.hidden.grad, case.weight.grad):
        grad += 1.0  # touched, so that it counts before and not after
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    VARIANTS[name](case)
    queue.put(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def memory(make: Callable[[], Case], names: list[str]) -> dict[str, int]:
    """Peak bytes of each variant."""
    context, found = multiprocessing.get_context("spawn"), {}
    for name in names:
        queue = context.Queue()
        process = context.Process(target=peak, args=(make, name, queue))
        process.start()
        found[name] = queue.get()
        process.join()
    return found


def seconds(make: Callable[[], Case], names: list[str], rounds: int) -> dict[str, float]:
    """Median time of each variant, interleaved."""
    case, times = make(), {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            case.hidden.grad = case.weight.grad = None
            started = time.perf_counter()
            VARIANTS[name](case)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What exact KL costs.")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    a = parser.parse_args()
    make, names = partial(make_case, a.tokens, a.vocab, a.hidden), available()
    bytes_, times = memory(make, names), seconds(make, names, a.rounds)
    print(f"V = {a.vocab:,}, H = {a.hidden}, N = {a.tokens:,}, {torch.get_num_threads()} thread(s)")
    print(f"{'':>16} {'seconds':>8} {'× plain':>8} {'MB':>7} {'× plain':>8}")
    for name in names:
        print(
            f"{name:>16} {times[name]:8.2f} {times[name] / times['plain']:8.2f} "
            f"{bytes_[name] / 2**20:7.0f} {bytes_[name] / bytes_['plain']:8.2f}"
        )
    for other in ("sampled only", "TRL exact"):
        if other in names:
            print(f"linear_kl_loss / {other}: {times['linear_kl_loss'] / times[other]:.2f} in time")
    if a.out:
        figures = {"seconds": times, "bytes": bytes_, "vocab": a.vocab, "hidden": a.hidden}
        a.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
