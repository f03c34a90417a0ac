"""What exact KL costs: time and memory of `linear_kl` against the plain formulas, sampling only, and TRL.

    OMP_NUM_THREADS=1 python benchmarks/exact_kl.py            # ten minutes, with TRL fifteen; 8 GB
    OMP_NUM_THREADS=1 python benchmarks/exact_kl.py --quick    # V = 49,152, H = 576: two or three
    python benchmarks/exact_kl.py --device cuda                # bfloat16, H = 2,048, N = 8,192

Every figure is a ratio within one run. Times are forward and backward, medians over interleaved rounds; TRL, where it
is installed, is slow and runs once. Memory is what a process of its own peaks at above its inputs and their gradients.
Errors are against the plain formulas in float64: the largest of any token, and of a gradient's norm.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
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
from kleash.functional.divergences import reverse_kl
from kleash.functional.linear_kl import linear_kl, linear_kl_loss
from kleash.functional.logprobs import entropy, token_logprobs

BETA = 0.1
CHECKED = 16
"""Tokens that are compared with float64."""
PRODUCTS = {"linear_kl_loss": 4, "linear_kl": 6, "plain": 4}
"""Of N × V × H multiplications and additions each."""


class Case(NamedTuple):
    """Two heads and what they are applied to; the loss is −A·log π + β·KL."""

    hidden: Tensor
    weight: Tensor
    ref_hidden: Tensor
    ref_weight: Tensor
    tokens: Tensor
    advantages: Tensor


def make_case(
    tokens: int, vocab: int, hidden: int, device: str = "cpu", apart: float = 0.5
) -> Case:
    """Heads about a nat per token apart, the same each time; without temporaries, which would count as peak."""
    g = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    h = torch.randn(tokens, hidden, generator=g)
    weight = torch.randn(vocab, hidden, generator=g).mul_(hidden**-0.5 * 2)
    ref_weight = torch.randn(vocab, hidden, generator=g).mul_(apart * hidden**-0.5).add_(weight)
    chosen = torch.randint(vocab, (tokens,), generator=g)
    advantages = torch.randn(tokens, generator=g)
    h, weight, ref_weight = (x.to(device, dtype) for x in (h, weight, ref_weight))
    return Case(
        h.requires_grad_(),
        weight.requires_grad_(),
        h.detach().clone(),
        ref_weight,
        chosen.to(device),
        advantages.to(device),
    )


def plain(case: Case) -> None:
    """Every logit held."""
    own = torch.log_softmax((case.hidden @ case.weight.t()).float(), -1)
    with torch.no_grad():
        theirs = torch.log_softmax((case.ref_hidden @ case.ref_weight.t()).float(), -1)
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
        assert isinstance(chunk, Chunk)
        accumulate(grads, rows, _sampled(chunk, -case.advantages[rows]), policy)
    case.hidden.grad, case.weight.grad = grads.hidden, grads.weight


def _sampled(chunk: Chunk, upstream: Tensor) -> Tensor:
    for rows in blocks(len(chunk.own), len(chunk.scratch)):
        z, r, tokens = chunk.own[rows], chunk.theirs[rows], chunk.tokens[rows]
        logprobs = torch.log_softmax(z, -1, out=chunk.scratch[: len(z)])
        ref_logprobs = torch.log_softmax(r, -1, out=z)
        chunk.read.logprobs[rows] = logprobs.gather(-1, tokens)[:, 0]
        chunk.read.ref_logprobs[rows] = ref_logprobs.gather(-1, tokens)[:, 0]
        a = upstream[rows, None]
        torch.exp(logprobs, out=z).mul_(-a).scatter_add_(-1, tokens, a)
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


TRL = "TRL exact"
VARIANTS: dict[str, Callable[[Case], None]] = {
    "linear_kl_loss": fused,
    "linear_kl": per_token,
    "sampled only": sampled,
    "plain": plain,
    TRL: trl_exact,
}


def available(device: str) -> list[str]:
    """The variants that can run here."""
    names = [name for name in VARIANTS if name != TRL or find_spec("trl") is not None]
    return names if device == "cpu" else [name for name in names if name in PRODUCTS]


class Cost(NamedTuple):
    """Of one run."""

    seconds: float
    bytes: int
    """The peak above inputs and their gradients."""


def run(case: Case, name: str) -> Cost:
    """One run, from no gradients to gradients."""
    case.hidden.grad = case.weight.grad = None
    gradients = sum(x.numel() * x.element_size() for x in case[:2])
    before, started = _peak(case, reset=True), time.perf_counter()
    VARIANTS[name](case)
    peak = _peak(case)
    return Cost(time.perf_counter() - started, peak - before - gradients)


def _peak(case: Case, *, reset: bool = False) -> int:
    """Peak bytes so far; a processor's process can't forget its own."""
    if not case.hidden.is_cuda:
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.cuda.synchronize()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def _alone(make: Callable[[], Case], name: str, queue: Any) -> None:
    queue.put(run(make(), name))


def alone(make: Callable[[], Case], names: list[str]) -> dict[str, Cost]:
    """Each variant once, in a process of its own."""
    context, found = multiprocessing.get_context("spawn"), {}
    for name in names:
        queue = context.Queue()
        process = context.Process(target=_alone, args=(make, name, queue))
        process.start()
        found[name] = queue.get()
        process.join()
    return found


def interleaved(make: Callable[[], Case], names: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of each variant; TRL runs in the first round only."""
    case, times = make(), {name: [] for name in names}
    for name in names if case.hidden.is_cuda else ():
        run(case, name)  # kernels are compiled, libraries wake up
    for number in range(rounds):
        for name in names:
            if name != TRL or number == 0:
                times[name].append(run(case, name).seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def errors(make: Callable[[], Case]) -> dict[str, float]:
    """Relative errors of what `linear_kl_loss` reads and differentiates, against float64."""
    case = make()
    read = linear_kl(*case[:5])
    fused(case)
    found = [case.hidden.grad, case.weight.grad]
    hidden, weight = (x.detach().double().requires_grad_() for x in case[:2])
    own = torch.log_softmax(hidden @ weight.t(), -1)
    theirs = torch.log_softmax(case.ref_hidden.double() @ case.ref_weight.double().t(), -1)
    logprobs, ref_logprobs = (token_logprobs(x, case.tokens) for x in (own, theirs))
    truth = TokenKL(logprobs, ref_logprobs, reverse_kl(own, theirs), entropy(own))
    (BETA * truth.kl - case.advantages * logprobs).sum().backward()
    result = {
        name: float(((one - other) / other).abs().max().detach())
        for name, one, other in zip(TokenKL._fields, read, truth, strict=True)
    }
    for name, one, other in zip(("hidden", "weight"), found, (hidden, weight), strict=True):
        assert one is not None
        assert other.grad is not None
        difference = one - other.grad
        result[f"gradient of {name}"] = float(difference.norm() / other.grad.norm())
    return result | {"smallest kl": float(truth.kl.detach().min())}


def matmul_rate(hidden: int) -> float:
    """Floating-point operations per second of a large bfloat16 product on this GPU."""
    left, right = (torch.randn(8192, hidden, device="cuda").bfloat16() for _ in range(2))
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(left, right.t())
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * 8192 * 8192 * hidden / statistics.median(times)


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """All the figures."""
    make = partial(make_case, a.tokens, a.vocab, a.hidden, a.device)
    names = available(a.device)
    sizes = {name: cost.bytes for name, cost in alone(make, names).items()}
    times = interleaved(make, names, a.rounds)
    few = partial(make_case, CHECKED, a.vocab, a.hidden, a.device)
    figures = {
        "seconds": times,
        "bytes": sizes,
        "errors": errors(few),
        "errors near the reference": errors(partial(few, apart=1.5e-3)),
        "threads": torch.get_num_threads(),
    }
    if a.device == "cuda":
        rate = matmul_rate(a.hidden)
        work = 2 * a.tokens * a.vocab * a.hidden / rate
        figures["share of matmul rate"] = {
            name: count * work / times[name] for name, count in PRODUCTS.items()
        }
    settings = {name: getattr(a, name) for name in ("vocab", "hidden", "tokens", "device")}
    return settings | figures


def show(figures: dict[str, Any]) -> None:
    """Prints them."""
    times, sizes = figures["seconds"], figures["bytes"]
    print(
        f"V = {figures['vocab']:,}, H = {figures['hidden']:,}, N = {figures['tokens']:,}, "
        f"{figures['device']}, {figures['threads']} thread(s)"
    )
    print(f"{'':>16} {'seconds':>8} {'× plain':>8} {'MB':>7} {'× plain':>8}")
    for name in times:
        print(
            f"{name:>16} {times[name]:8.3f} {times[name] / times['plain']:8.2f} "
            f"{sizes[name] / 2**20:7.0f} {sizes[name] / sizes['plain']:8.3f}"
        )
    for other in ("plain", "sampled only", TRL):
        if other in times:
            print(f"linear_kl_loss / {other}: {times['linear_kl_loss'] / times[other]:.2f} in time")
    for name, share in figures.get("share of matmul rate", {}).items():
        print(f"{name}: {share:.0%} of the measured matmul rate")
    for title in ("errors", "errors near the reference"):
        print(f"relative {title}, {CHECKED} tokens, against float64:")
        for name, value in figures[title].items():
            print(f"{name:>20} {value:.1e}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What exact KL costs.")
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int, help="2, on a GPU 10")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a third of the vocabulary")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    a = parser.parse_args()
    cuda = a.device == "cuda"
    a.vocab = a.vocab or (49_152 if a.quick else 151_936)
    a.hidden = a.hidden or (2048 if cuda else 576 if a.quick else 896)
    a.tokens = a.tokens or (8192 if cuda else 2048)
    a.rounds = a.rounds or (10 if cuda else 2)
    figures = measure(a)
    show(figures)
    if a.out:
        a.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
