"""Faults of a training run, and how soon a guard planned from sound runs finds them: for `benchmarks/faults.py`.

A run of a small model is sound for `WARM` updates; then a fault begins, and the run goes on until the guard refuses an
update or an alarm rings, or to its end. Every fault meets the same guard.
"""

import copy
import math
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import kleash.train.loop as loop_module
import kleash.train.progress as progress_module
from kleash.errors import LimitError, RewardError
from kleash.records import StepRecord
from kleash.rewards.scorers import Scorer, function_scorer
from kleash.rollout.rollout import Rollout
from kleash.train.config import RunConfig
from kleash.train.learner import Snapshot
from kleash.train.loop import run_loop
from kleash.train.progress import Progress
from kleash.train.run import prepare
from kleash.train.setup import Setup
from tests.train.small import save_prompts, save_small_model

WARM = 50
"""Sound updates before a fault."""
HORIZON, LONG = 40, 70
"""Updates in which it is to be found; in which a change of the updates' KL is."""

GUARD: dict[str, Any] = {
    # From 600 updates of six sound runs, seeds 1000 to 1005. Of what the policy is, twice the most: 1.22, 0.90, 1.35;
    # and two thirds of the least entropy, 1.51. Of what one update does, whose tail is heavy, four times the most:
    # 0.0047, 0.36, 1.53, 1.07. Twice the path of 39 nats in 100 updates; a burst of four times the most in one, 1.58.
    "max_kl": 2.5,
    "max_kl_canary": 1.8,
    "max_kl_slice": 2.7,
    "min_entropy": 1.0,
    "max_kl_new_old": 0.019,
    "max_kl_new_old_token": 1.5,
    "max_log_ratio": 6.0,
    "max_raw_grad_norm": 4.3,
    "max_path_log_ratio": 94.0,
    "burst": 8.0,
    # Rounding alone, 5e-14, where one engine samples and learns.
    "max_mismatch": 1e-4,
    "on_breach": "shrink",
    "canary_prompts": 24,
    "alarms": {
        # A quarter to spare of the means after update 40, 0.87 and 6.6e-4; a tenth of 1.63 and of 4.3; 0.3 of 0.8. Till
        # then, as the policy finds its distance, updates are twice as large: 1.2e-3 on average in steps 11 to 20.
        "kl": {"mean": 1.1},
        "kl_new_old": {"mean": 8.3e-4, "from_step": 41},
        "entropy": {"mean": 1.47, "bound": 2.4},
        "length": {"mean": 3.9, "bound": 5.1},
        "concordance": {"mean": 0.5},
    },
}
"""The one guard that every fault meets; `mean_time` is 10,000 updates for each of its five alarms."""


def proxy(prompts: list[str], responses: list[str]) -> list[float]:
    """The reward."""
    return [x.count("a") - 0.1 * len(x) for x in responses]


def held_out(prompts: list[str], responses: list[str]) -> list[float]:
    """What is really wanted; nothing is trained on it."""
    wanted = {"a": 1.0, "b": 0.3, "h": -0.5}
    return [sum(wanted.get(letter, 0.0) - 0.1 for letter in x) for x in responses]


def slice_of(prompt: str) -> str:
    """Two first letters to a slice."""
    return "abcdefgh"["abcdefgh".index(prompt[0]) // 2 * 2 :][:2]


def settings(place: Path, seed: int) -> dict[str, Any]:
    """Of a sound run; model, prompts and canary are written once."""
    if not place.exists():
        place.mkdir()
        save_small_model(place / "model")
        prompts = save_prompts(place / "prompts.txt").read_text().split()
        rows = [f'{{"prompt": "{p}", "slice": "{slice_of(p)}"}}\n' for p in prompts]
        (place / "canary.jsonl").write_text("".join(rows))
    return {
        "model": {"policy": str(place / "model")},
        "data": {"prompts": str(place / "prompts.txt")},
        "rollout": {"num_prompts": 16, "group_size": 4, "max_new_tokens": 5},
        "reward": {"model": f"{__name__}:proxy", "monitor": [f"{__name__}:held_out"]},
        "rl": {"controller": "fixed", "kl_coef": 0.5},
        "algorithm": {"name": "rloo", "num_epochs": 1, "num_minibatches": 1},
        "optimizer": {"learning_rate": 5e-3, "warmup_steps": 10},
        "guard": {**GUARD, "canary": str(place / "canary.jsonl"), "rollback_after": 999},
        "train": {
            "steps": WARM + LONG,
            "seed": seed,
            "threads": 1,
            "device": "cpu",
            "num_samples": 1,
            "sample_every": 999,
            "micro_batch_size": 64,
            "trackers": [],
        },
    }


class _Record:
    """A ledger that keeps nothing."""

    def append(self, kind: str, body: dict[str, Any]) -> None: ...


@dataclass
class Live:
    """A run on its way, as a fault finds it."""

    setup: Setup
    progress: Progress

    def loop(self) -> Iterator[StepRecord]:
        """Its steps from here."""
        self.progress.setup = self.setup
        return run_loop(self.setup, _Record(), self.progress)  # pyright: ignore[reportArgumentType]


class Sound:
    """A run after its sound updates, from which every fault begins.

    Args:
        place: for its files.
        seed: of the run.
        warm: sound updates.
    """

    def __init__(self, place: Path, seed: int, warm: int = WARM) -> None:
        self.setup = prepare(RunConfig.model_validate(settings(place, seed)))
        live = Live(self.setup, Progress(self.setup))
        steps = live.loop()
        self.records = [next(steps) for _ in range(warm)]
        learner = self.setup.learner
        self.snapshot, self.mark = learner.snapshot(), live.progress.mark
        self.reference = copy.deepcopy(learner.reference.model.state_dict())

    def again(self) -> Live:
        """The run as it was after its sound updates."""
        learner = self.setup.learner
        # A copy: what the optimiser is given it goes on to change.
        kept = Snapshot(self.snapshot.parameters, copy.deepcopy(self.snapshot.optimizer))
        learner.restore(kept)
        learner.reference.model.load_state_dict(self.reference)
        return Live(self.setup, Progress(self.setup, self.mark))


# What is done to a run. Each is undone when its context is left.

Fault = Callable[[Live], AbstractContextManager[Any]]


def _rate(factor: Callable[[int], float]) -> Fault:
    """The learning rate times a factor of the update's number, from 0."""

    @contextmanager
    def fault(live: Live) -> Generator[None]:
        count = iter(range(10**6))

        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            scale = factor(next(count))
            for group in optimizer.param_groups:
                group["lr"] *= scale

        handle = live.setup.learner.optimizer.register_step_pre_hook(hook)
        yield
        handle.remove()

    return fault


def _reward(change: Callable[[str, str, float], float], *, once: bool = False) -> Fault:
    """Another reward of (prompt, response, proxy), for good or for one batch."""

    @contextmanager
    def fault(live: Live) -> Generator[None]:
        real, calls = live.setup.reward, iter(range(10**6))

        def score(prompts: Any, responses: Any) -> list[float]:
            scores = real.score(prompts, responses)
            # A sample to be looked at is no batch.
            if once and (len(responses) == 1 or next(calls)):
                return scores
            return [change(*each) for each in zip(prompts, responses, scores, strict=True)]

        live.setup = replace(live.setup, reward=Scorer(name=real.name, score=score))
        yield

    return fault


@contextmanager
def _checked_nan(live: Live) -> Generator[None]:
    real = live.setup.reward
    broken = function_scorer(real.name, lambda p, r: [math.nan, *real.score(p, r)[1:]])
    live.setup = replace(live.setup, reward=broken)
    yield


def _rollouts(change: Callable[[Live, Callable[[], Rollout]], Rollout]) -> Fault:
    """Rollouts that are made otherwise."""

    @contextmanager
    def fault(live: Live) -> Generator[None]:
        real = live.progress.next_rollout
        live.progress.next_rollout = lambda: change(live, real)
        yield
        live.progress.next_rollout = real

    return fault


def _wrong_tokens(live: Live, take: Callable[[], Rollout]) -> Rollout:
    rollout = take()
    shuffled = rollout.response_ids.flip(0)
    return replace(rollout, response_ids=torch.where(rollout.mask, shuffled, rollout.response_ids))


@torch.no_grad()
def _by_other_weights(live: Live, weights: list[Tensor], take: Callable[[], Rollout]) -> Rollout:
    parameters = list(live.setup.learner.policy.model.parameters())
    own = [p.detach().clone() for p in parameters]
    for parameter, value in zip(parameters, weights, strict=True):
        parameter.copy_(value)
    rollout = take()
    for parameter, value in zip(parameters, own, strict=True):
        parameter.copy_(value)
    return rollout


def _behind(updates: int) -> Fault:
    """A sampler whose weights are some updates old."""

    @contextmanager
    def fault(live: Live) -> Generator[None]:
        real, past = live.progress.next_rollout, list[list[Tensor]]()

        def next_rollout() -> Rollout:
            past.append([p.detach().clone() for p in live.setup.learner.policy.model.parameters()])
            return _by_other_weights(live, past[max(0, len(past) - 1 - updates)], real)

        live.progress.next_rollout = next_rollout
        yield
        live.progress.next_rollout = real

    return fault


def _off(live: Live, take: Callable[[], Rollout]) -> Rollout:
    draw = torch.Generator().manual_seed(live.setup.config.train.seed)
    weights = [
        p + 0.02 * p.std() * torch.randn(p.shape, generator=draw)
        for p in live.setup.learner.policy.model.parameters()
    ]
    return _by_other_weights(live, weights, take)


@contextmanager
def _replayed(live: Live) -> Generator[None]:
    """The first rollout over and over."""
    real, first = live.progress.next_rollout, list[Rollout]()

    def next_rollout() -> Rollout:
        if not first:
            first.append(real())
        return first[0]

    live.progress.next_rollout = next_rollout
    yield
    live.progress.next_rollout = real


@contextmanager
def _warmer(live: Live) -> Generator[None]:
    """A sampler at another temperature than the one that is learnt at."""
    real = progress_module.sample

    def sample(policy: Any, prompts: Any, config: Any, *others: Any) -> Rollout:
        return real(policy, prompts, config.model_copy(update={"temperature": 1.2}), *others)

    with mock.patch.object(progress_module, "sample", sample):
        yield


@contextmanager
def _negative(live: Live) -> Generator[None]:
    """A KL that an estimator's bug made negative."""
    real = loop_module.meter

    def meter(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        return replace(found, kl=-found.kl)

    with mock.patch.object(loop_module, "meter", meter):
        yield


def _gradient(change: Callable[[Tensor], Tensor]) -> Fault:
    @contextmanager
    def fault(live: Live) -> Generator[None]:
        handles = [p.register_hook(change) for p in live.setup.learner.trained]
        yield
        for handle in handles:
            handle.remove()

    return fault


def _half(gradient: Tensor) -> Tensor:
    """In 16 bits, by a loss scale that is too large for it."""
    return (gradient * 2.0**24).half().float() / 2.0**24


def _first_nan(gradient: Tensor) -> Tensor:
    broken = gradient.clone()
    broken.view(-1)[0] = math.nan
    return broken


def _after_step(change: Callable[[torch.optim.Optimizer, Tensor], None]) -> Fault:
    @contextmanager
    def fault(live: Live) -> Generator[None]:
        learner = live.setup.learner

        @torch.no_grad()
        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            change(optimizer, learner.trained[0])

        handle = learner.optimizer.register_step_post_hook(hook)
        yield
        handle.remove()

    return fault


def _inf_weight(_: torch.optim.Optimizer, parameter: Tensor) -> None:
    parameter.view(-1)[0] = -math.inf


def _nan_moment(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    optimizer.state[parameter]["exp_avg_sq"].view(-1)[0] = math.nan


@contextmanager
def _activation(live: Live) -> Generator[None]:
    """A hidden state overflows where there is a gradient."""

    def hook(module: Any, given: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            with torch.no_grad():
                output.last_hidden_state[..., 0] = math.inf

    handle = live.setup.learner.policy.model.base_model.register_forward_hook(hook)
    yield
    handle.remove()


def _each_step(change: Callable[[Live], None]) -> Fault:
    """Something that is done before each rollout."""

    @contextmanager
    def fault(live: Live) -> Generator[None]:
        real = live.progress.next_rollout

        def next_rollout() -> Rollout:
            with torch.no_grad():
                change(live)
            return real()

        live.progress.next_rollout = next_rollout
        yield
        live.progress.next_rollout = real

    return fault


def _fade(live: Live) -> None:
    mark = live.progress.mark
    lower = replace(mark.control, kl_coef=0.95 * mark.control.kl_coef)
    live.progress.mark = replace(mark, control=lower)


def _sharpen(live: Live) -> None:
    live.setup.learner.policy.head.weight.mul_(1.02)


def _follow(live: Live) -> None:
    learner = live.setup.learner
    learner.reference.model.load_state_dict(learner.policy.model.state_dict())


@contextmanager
def _forget(live: Live) -> Generator[None]:
    """The optimiser's state is lost, as by a resume that leaves it out."""
    live.setup.learner.optimizer.state.clear()
    yield


def _of_slice(prompt: str, response: str, score: float) -> float:
    return 3.0 * response.count("d") if slice_of(prompt) == "gh" else 0.0


FAULTS: dict[str, Fault] = {
    "KL spike: rate ×50, one update": _rate(lambda n: 50.0 if n == 0 else 1.0),
    "KL of updates ×2": _rate(lambda n: math.sqrt(2.0)),
    "KL of updates ×1.5": _rate(lambda n: math.sqrt(1.5)),
    "KL of updates +2 % each": _rate(lambda n: 1.02 ** ((n + 1) / 2)),
    "optimiser state lost": _forget,
    "poisoned batch: rewards ×1000": _reward(lambda p, r, x: 1000.0 * x, once=True),
    "poisoned batch: other tokens": _rollouts(_wrong_tokens),
    "β → 0, 5 % an update": _each_step(_fade),
    "reward ×20": _reward(lambda p, r, x: 20.0 * x),
    "reward hack: a token": _reward(lambda p, r, x: x + 1.0 * r.count("h")),
    "reward hack: length": _reward(lambda p, r, x: 0.5 * len(r)),
    "reward's sign flipped": _reward(lambda p, r, x: -x),
    "logits sharpened 2 % an update": _each_step(_sharpen),
    "drift in one slice": _reward(_of_slice),
    "reference follows the policy": _each_step(_follow),
    "sampler 4 updates behind": _behind(4),
    "sampler's weights 2 % off": _rollouts(_off),
    "sampler at temperature 1.2": _warmer,
    "replayed batch": _replayed,
    "NaN in the reward": _checked_nan,
    "NaN in the reward, unchecked": _reward(lambda p, r, x: math.nan),
    "inf in an activation": _activation,
    "NaN in a gradient": _gradient(_first_nan),
    "fp16 overflow of the gradient": _gradient(_half),
    "−inf in a weight": _after_step(_inf_weight),
    "NaN in a moment": _after_step(_nan_moment),
    "KL estimate below zero": _negative,
}
SOUND: Fault = lambda live: nullcontext()  # noqa: E731


# What the guard made of it.


class Sign(NamedTuple):
    """Something that the guard said."""

    by: str
    """Which limit, or which alarm."""
    after: int
    """Updates from the fault on; 1: the first of them."""
    is_alarm: bool
    is_kept: bool
    """Whether an update was applied all the same: as it was where an alarm rang, in part where it was shortened."""


def watch(fault: Fault, sound: Sound, *, updates: int, whole: bool = False) -> list[Sign]:
    """What the guard first says of a run with a fault; all that it says, where the whole is asked for."""
    live, found = sound.again(), list[Sign]()
    with fault(live):
        steps = live.loop()
        for after in range(1, updates + 1):
            try:
                record = next(steps)
            except RewardError:
                found.append(Sign("reward check", after, is_alarm=False, is_kept=False))
                break
            except LimitError:  # whose record came before
                break
            found += said(record, after)
            if found and not whole:
                break
    return found


class Result(NamedTuple):
    """Of one seed."""

    seed: int
    false: list[Sign]
    """Said of the run without a fault."""
    first: dict[str, Sign | None]
    """By fault; None: it was not found."""


def of_seed(place: Path, seed: int, names: list[str]) -> Result:
    """A sound run to its end, and each fault once."""
    sound = Sound(place, seed)
    false = [sign for record in sound.records for sign in said(record, record.step - WARM)]
    false += watch(SOUND, sound, updates=LONG, whole=True)
    first: dict[str, Sign | None] = {}
    for name in names:
        updates = LONG if name.startswith("KL of updates") else HORIZON
        first[name] = next(iter(watch(FAULTS[name], sound, updates=updates)), None)
    return Result(seed, false, first)


def said(record: StepRecord, after: int) -> Iterator[Sign]:
    """What the guard says of one step: refusals first."""
    verdict = record.verdict
    if verdict.action != "accept":
        reasons = verdict.reasons[:1] if verdict.action != "shrink" else ("shortened",)
        for reason in reasons:
            yield Sign(_limit(reason), after, is_alarm=False, is_kept=verdict.keeps)
    for alarm in verdict.alarms:
        yield Sign(f"alarm {alarm.split()[0]}", after, is_alarm=True, is_kept=verdict.keeps)


def _limit(reason: str) -> str:
    if found := re.search(r"(\w+) = ", reason):
        return found[1]
    if "not finite" in reason:
        return "finite"
    if "not a KL" in reason or "not a number" in reason:
        return "possible"
    return "budget" if "allowance" in reason else reason
