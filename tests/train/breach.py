"""Runs whose updates break a limit, or are no numbers, watched from outside: for tests and `benchmarks/breaches.py`.

What is kept is measured again here, in double precision by plain torch from the weights before and after, and not by
anything of kleash's; what is refused must leave everything as it was, by digest.
"""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import kleash.train.run as run_module
from kleash import control
from kleash.errors import LimitError, RewardError
from kleash.ledger import Ledger, SigningKey, UpdateEntry
from kleash.records import StepRecord
from kleash.replay import verify_run
from kleash.rewards.scorers import Scorer, function_scorer
from kleash.rollout.rollout import Rollout
from kleash.train.config import RunConfig
from kleash.train.loop import run_loop
from kleash.train.process import random_tensors
from kleash.train.progress import Progress
from kleash.train.setup import Setup
from tests.train.small import save_prompts, save_small_model

ROUNDING = 1e-4
"""Share of a limit by which what is kept may be over it: what kleash measures in single precision is measured here in
double."""
SLICES = 4

Weights = list[Tensor]


# What everything is, as digests.


def _sha(tensors: Sequence[Tensor]) -> str:
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _rollouts(rollouts: Any) -> list[Tensor]:
    return [x for each in rollouts for x in (each.response_ids, each.mask, each.sampled_logprobs)]


def digests(setup: Setup, progress: Progress) -> dict[str, str]:
    """Of all that an update could change, by part."""
    learner, canary = setup.learner, setup.canary
    state = learner.optimizer.state_dict()["state"]
    head = [] if learner.value_head is None else list(learner.value_head.parameters())
    orders = [progress.prompts.order, progress.prompts.taken]
    budget = progress.mark.guard.budget
    return {
        "weights": _sha(list(learner.policy.model.parameters())),
        "value head": _sha(head),
        # In one order: loading a checkpoint gives them another.
        "moments": _sha(
            [torch.as_tensor(state[i][x]) for i in sorted(state) for x in sorted(state[i])]
        ),
        "reference": _sha(list(learner.reference.model.parameters())),
        "stream": _sha([progress.generator.get_state()]),
        # Python's own is drawn from by what checks types in tests.
        "process streams": _sha([x for n, x in random_tensors().items() if "python" not in n]),
        "data": hashlib.sha256(json.dumps(orders).encode()).hexdigest(),
        "waiting": _sha(_rollouts(progress.waiting)),
        "canary": "" if canary is None else _sha([canary.before.hidden, canary.before.head.weight]),
        "budget": repr(None if budget is None else (budget.spent, budget.updates)),
    }


# What is measured again.


class Twin:
    """The policy's architecture in double precision, to which any weights are given."""

    def __init__(self, setup: Setup) -> None:
        self.model = copy.deepcopy(setup.learner.policy.model).double()
        self.temperature = setup.config.rollout.temperature

    @torch.no_grad()
    def logprobs(self, weights: Weights, rollout: Rollout) -> Tensor:
        """[N, V] at the responses' own tokens."""
        for parameter, value in zip(self.model.parameters(), weights, strict=True):
            parameter.copy_(value)
        ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
        mask = torch.cat([rollout.prompt_mask, torch.ones_like(rollout.mask)], 1).long()
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=places).logits
        logits = logits[:, rollout.prompt_ids.shape[1] - 1 : -1][rollout.mask]
        return torch.log_softmax(logits / self.temperature, -1)


def divergence(new: Tensor, old: Tensor) -> Tensor:
    """Σ p (log p − log q), [N]."""
    return (new.exp() * (new - old)).sum(-1)


def per_response(values: Tensor, rollout: Rollout) -> Tensor:
    """[N] at the tokens, summed over each response: [B]."""
    rows = rollout.mask.nonzero()[:, 0]
    return torch.zeros(len(rollout.mask), dtype=torch.double).index_add_(0, rows, values)


@dataclass
class Step:
    """One step as it was seen from outside."""

    rollout: Rollout
    digests: dict[str, str]
    mark: Any
    before: Weights
    proposed: Weights = field(default_factory=list[Tensor])
    after: Weights = field(default_factory=list[Tensor])
    entry: UpdateEntry | None = None
    after_digests: dict[str, str] = field(default_factory=dict[str, str])
    after_mark: Any = None
    grad_norms: list[float] = field(default_factory=list[float])


class Observer:
    """Looks at a run between its lines: as an update is announced, decided, and done with.

    Args:
        tamper: does something to the run before it begins.
    """

    def __init__(self, tamper: "Tamper | None" = None) -> None:
        self.tamper, self.steps = tamper, list[Step]()
        self.is_updating = False
        self.rollout: Rollout | None = None
        self.ended: dict[int, dict[str, str]] = {}
        """Digests after each step."""
        self.squares: list[tuple[int, float]] = []

    def begin(self, setup: Setup, progress: Progress, ledger: Ledger) -> Setup:
        """As the loop starts; what it is to run on."""
        setup = setup if self.tamper is None else self.tamper(self, setup, progress)
        progress.setup = setup
        self.setup, self.progress, self.ledger = setup, progress, ledger
        self.twin, self.start = Twin(setup), self.weights()
        self.reference = [p.detach().clone() for p in setup.learner.reference.model.parameters()]
        take = progress.next_rollout

        def next_rollout() -> Rollout:
            self.rollout = rollout = take()
            return rollout

        progress.next_rollout = next_rollout
        for index, parameter in enumerate(setup.learner.trained):
            parameter.register_post_accumulate_grad_hook(self._take_gradient(index))
        return setup

    def _take_gradient(self, index: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.squares.append((index, float(parameter.grad.double().square().sum())))

        return hook

    def weights(self) -> Weights:
        """A copy of them."""
        return [p.detach().clone() for p in self.setup.learner.policy.model.parameters()]

    def append(self, kind: str, body: dict[str, Any]) -> Any:
        """An entry of the ledger, on its way there."""
        if kind == "update.intent":
            assert self.rollout is not None
            seen, self.squares = digests(self.setup, self.progress), []
            self.steps.append(Step(self.rollout, seen, self.progress.mark, self.weights()))
        self.is_updating = kind == "update.intent"
        if kind == "update":
            self.steps[-1].entry = UpdateEntry.from_json(body)
            self.steps[-1].proposed = self.weights()
            self.steps[-1].grad_norms = self._norms()
        return self.ledger.append(kind, body)

    def _norms(self) -> list[float]:
        """Of each gradient: a parameter's nth belongs to the nth."""
        found: dict[int, list[float]] = {}
        for index, square in self.squares:
            found.setdefault(index, []).append(square)
        return [math.sqrt(sum(each)) for each in zip(*found.values(), strict=True)]

    def after(self) -> None:
        """As the record of a step is out."""
        step = self.steps[-1]
        step.after, step.after_mark = self.weights(), self.progress.mark
        step.after_digests = digests(self.setup, self.progress)
        self.ended[step.after_mark.step] = step.after_digests

    def measure(self, step: Step, new: Weights) -> dict[str, float]:
        """Every quantity that is limited, of an update of this step to other weights."""
        rollout, twin = step.rollout, self.twin
        now, then = twin.logprobs(new, rollout), twin.logprobs(step.before, rollout)
        reference = twin.logprobs(self.reference, rollout)
        tokens = rollout.response_ids[rollout.mask][:, None]
        kl, ratio = divergence(now, then), (now - then).gather(1, tokens)
        old = then.gather(1, tokens)[:, 0]
        log_ratio = rollout.sampled_logprobs[rollout.mask].double() - old
        found = {
            "max_kl": float(per_response(divergence(now, reference), rollout).mean()),
            "max_kl_new_old": float(kl.mean()),
            "max_kl_new_old_p99": float(kl.kthvalue(math.ceil(0.99 * len(kl))).values),
            "max_kl_new_old_token": float(kl.max()),
            "max_log_ratio": float(ratio.abs().max()),
            "min_entropy": float(-(now.exp() * now).sum(-1).mean()),
            "max_mismatch": float((torch.exp(-log_ratio) - 1 + log_ratio).mean()),
        }
        if step.grad_norms:
            found["max_raw_grad_norm"] = sum(step.grad_norms) / len(step.grad_norms)
        return found | self._at_canary(step, new)

    def _at_canary(self, step: Step, new: Weights) -> dict[str, float]:
        canary, twin = self.setup.canary, self.twin
        if canary is None:
            return {}
        rollout, slices = canary.rollout, canary.slices
        now, then = twin.logprobs(new, rollout), twin.logprobs(step.before, rollout)
        drift = per_response(divergence(now, twin.logprobs(self.reference, rollout)), rollout)
        of = [slices[i] for i in rollout.prompt_index.tolist()]
        means = [drift[torch.tensor([x == name for x in of])].mean() for name in {*of}]
        variation = (now.exp() - then.exp()).abs().sum(-1) / 2
        return {
            "max_kl_canary": float(drift.mean()),
            "max_kl_slice": max(map(float, means)),
            "max_path_log_ratio": float((now - then).abs().max()),
            "max_path_variation": float(variation.mean()),
        }


Tamper = Callable[[Observer, Setup, Progress], Setup]


@contextmanager
def watched(observer: Observer) -> Generator[None]:
    """Has the observer look at the runs that are made meanwhile; the loop is the one that there is."""

    def loop(setup: Setup, ledger: Ledger, progress: Progress, go_back: Any) -> Any:
        given = observer.begin(setup, progress, ledger)
        for record in run_loop(given, observer, progress, go_back):  # pyright: ignore[reportArgumentType]
            observer.after()
            yield record

    run_module.run_loop = loop
    try:
        yield
    finally:
        run_module.run_loop = run_loop


# Runs.


class Case(NamedTuple):
    """One run with something wrong."""

    what: str
    """The limit that is broken, or where the number breaks."""
    mode: str
    """`shrink`, `reject`, `rollback`; or which number."""
    algorithm: str
    seed: int


ALGORITHMS = ("ppo", "rloo")
"""With a value head, and without."""
STEPS = 7


def settings(place: Path, case: Case) -> dict[str, Any]:
    """Of a run that moves fast; model, prompts and canary are written once."""
    if not place.exists():
        place.mkdir()
        save_small_model(place / "model")
        prompts = save_prompts(place / "prompts.txt").read_text().split()
        rows = [{"prompt": p, "slice": p[0]} for p in prompts[: 2 * SLICES * 3 : 3]]
        (place / "canary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"policy": str(place / "model")},
        "data": {"prompts": str(place / "prompts.txt")},
        "rollout": {"num_prompts": 6, "group_size": 2, "max_new_tokens": 4},
        "reward": {"model": "tests.train.small:count_a"},
        "rl": {"kl_target": 0.5, "kl_coef": 0.05},
        "algorithm": {"name": case.algorithm, "num_epochs": 1, "num_minibatches": 2},
        "optimizer": {"learning_rate": 0.02},
        "guard": {"canary": str(place / "canary.jsonl"), "canary_prompts": 2 * SLICES},
        "train": {
            "steps": STEPS,
            "seed": case.seed,
            "threads": 1,
            "device": "cpu",
            "num_samples": 1,
            "sample_every": 99,
            "checkpoint_every": 99,
            "trackers": [],
        },
    }


LIMITS: dict[str, Callable[[list[float]], float]] = {
    "max_kl": lambda free: 0.5 * max(free),
    "max_kl_new_old": lambda free: 0.4 * min(free),
    "max_kl_new_old_p99": lambda free: 0.4 * min(free),
    "max_kl_new_old_token": lambda free: 0.4 * min(free),
    "max_log_ratio": lambda free: 0.4 * min(free),
    "min_entropy": lambda free: sorted(free)[len(free) // 2],
    "max_raw_grad_norm": lambda free: 0.8 * min(free),
    "max_mismatch": lambda free: 1e-3,
    "max_kl_canary": lambda free: 0.5 * max(free),
    "max_kl_slice": lambda free: 0.5 * max(free),
    "max_path_log_ratio": lambda free: 0.6 * sum(free) / 2.0,
    "max_path_variation": lambda free: 0.6 * sum(free) / 2.0,
}
"""What each limit is set to, from what it limits in a run that nothing limits: so that steps break it."""
WHOLE = {"max_raw_grad_norm", "max_mismatch"}
"""Where a part of an update is no better."""


class Outcome(NamedTuple):
    """What came of a case."""

    case: Case
    breaches: int
    """Updates that were not accepted as they were."""
    actions: dict[str, int]
    faults: list[str]
    """What is wrong."""
    nearest: float | None
    """Of all kept, the largest share of its limit that was measured again."""


def go(run: Path, settings: dict[str, Any], observer: Observer) -> str:
    """A run to its end; what ended it, where that was not its steps."""
    config = RunConfig.model_validate(settings)
    records: list[StepRecord] = []
    with watched(observer), suppress(LimitError):
        try:
            steps = run_module.train(
                config, run, skip_self_test=True, signers=[SigningKey.generate()]
            )
            for record in steps:
                records.append(record)
        except RewardError:
            return "the reward"
    return "" if len(records) == STEPS else "the guard"


def limited(place: Path, run: Path, case: Case, free: dict[str, list[float]]) -> Outcome:
    """A run with a limit that its updates break."""
    given, limit = settings(place, case), LIMITS[case.what](free[case.what])
    guard = {case.what: limit, "rollback_after": 99, "on_breach": case.mode, "burst": 2.0}
    if case.mode == "rollback":
        guard |= {"on_breach": "reject", "rollback_after": 2, "max_rollbacks": 1}
        given["train"]["checkpoint_every"] = 1
    given["guard"] |= guard
    observer = Observer(_stale if case.what == "max_mismatch" else None)
    go(run, given, observer)
    faults = [*_unlike(observer, run), *_wrongly_kept(observer, case.what, limit)]
    if case.mode == "reject":
        faults += _wrongly_refused(observer, case.what, limit)
    return _outcome(case, observer, faults, limit)


def _outcome(case: Case, observer: Observer, faults: list[str], limit: float | None) -> Outcome:
    entries = [step.entry for step in observer.steps if step.entry is not None]
    actions = [entry.verdict.action for entry in entries]
    counts = {name: actions.count(name) for name in sorted({*actions})}
    kept = [s for s in observer.steps if s.entry is not None and s.entry.verdict.keeps]
    shares = None
    if limit is not None and kept and not case.what.startswith("max_path"):
        found = [observer.measure(step, step.after)[case.what] for step in kept]
        shares = max(limit / x if case.what == "min_entropy" else x / limit for x in found)
    return Outcome(case, len(actions) - actions.count("accept"), counts, faults, shares)


def _wrongly_kept(observer: Observer, what: str, limit: float) -> list[str]:
    """Updates that are over a limit, by what is measured here, and were kept; a budget that was overdrawn."""
    faults, spent = list[str](), 0.0
    for step in observer.steps:
        if step.entry is None or not step.entry.verdict.keeps:
            continue
        found = observer.measure(step, step.after)[what]
        if what == "min_entropy":
            if found < limit * (1 - ROUNDING):
                faults.append(f"kept at an entropy of {found}, under {limit}")
            continue
        if what.startswith("max_path"):
            spent += found
            found, most = spent, limit
            if observer.measure(step, step.after)[what] > 2.0 * limit / STEPS * (1 + ROUNDING):
                faults.append("an update was kept that is over its burst")
        else:
            most = limit
        if found > most * (1 + ROUNDING) + 1e-7:
            faults.append(f"kept at {found}, over {what} = {most}")
    return faults


def _wrongly_refused(observer: Observer, what: str, limit: float) -> list[str]:
    """Refused updates that are within the limit, by what is measured here."""
    if what.startswith("max_path"):
        return []
    faults = list[str]()
    for step in observer.steps:
        if step.entry is None or step.entry.verdict.action != "reject":
            continue
        found = observer.measure(step, step.proposed)[what]
        over = (
            found < limit * (1 + ROUNDING)
            if what == "min_entropy"
            else found > limit * (1 - ROUNDING)
        )
        if not over:
            faults.append(f"refused at {found}, within {what} = {limit}")
    return faults


def _unlike(observer: Observer, run: Path) -> list[str]:
    """What a refused update left behind; what the record says otherwise."""
    faults = list[str]()
    for step in observer.steps:
        if step.entry is None or not step.after_digests:
            continue
        verdict, after = step.entry.verdict, step.after_digests
        if verdict.keeps:
            continue
        expected = dict(step.digests)
        if verdict.action == "rollback":
            good = observer.ended[step.after_mark.guard.good]
            expected |= {x: good[x] for x in ("weights", "value head", "moments", "canary")}
        faults += [
            f"{x} is another after {verdict.action}" for x in after if after[x] != expected[x]
        ]
        faults += _other_beta(step)
    found = verify_run(run)
    return faults + [str(problem) for problem in found.problems]


def _other_beta(step: Step) -> list[str]:
    """The controller after a refusal is what it is by the rollout alone."""
    entry = step.entry
    assert entry is not None
    state = control.update(step.mark.control, entry.kl_control or entry.kl, entry.signals)
    factor = 2.0 if entry.verdict.action == "rollback" else 1.0
    state = control.raised(state, factor)
    same = state.to_json() == step.after_mark.control.to_json()
    return [] if same else ["β is another"]


# Something that is done to a run.


def _stale(observer: Observer, setup: Setup, progress: Progress) -> Setup:
    """Has every other rollout be of other weights than the policy's."""
    parameters = list(setup.learner.policy.model.parameters())
    draw, take = torch.Generator().manual_seed(setup.config.train.seed), progress.next_rollout

    @torch.no_grad()
    def next_rollout() -> Rollout:
        if len(observer.steps) % 2:
            return take()
        own = [p.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        try:
            return take()
        finally:
            for parameter, value in zip(parameters, own, strict=True):
                parameter.copy_(value)

    progress.next_rollout = next_rollout
    return setup


NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PLACES = (
    "reward",
    "reward, unchecked",
    "activation, training",
    "activation, measuring",
    "gradient",
    "weight",
    "value head",
    "first moment",
    "second moment",
)
"""Where a number breaks."""
AT = (3, 6)
"""In which steps."""


class Break:
    """Has one number break, once in each of some steps.

    Args:
        case: where, and to what.
    """

    def __init__(self, case: Case) -> None:
        self.place, self.value = case.what, NUMBERS[case.mode]
        self.done: list[int] = []

    def __call__(self, observer: Observer, setup: Setup, progress: Progress) -> Setup:
        self.observer, learner = observer, setup.learner
        adam = learner.optimizer
        if self.place.startswith("reward"):
            scorer = Scorer(name=setup.reward.name, score=self._scores(setup.reward))
            checked = function_scorer(setup.reward.name, scorer.score)
            return replace(setup, reward=checked if self.place == "reward" else scorer)
        if self.place.startswith("activation"):
            learner.policy.model.base_model.register_forward_hook(self._forward)
        elif self.place == "gradient":
            learner.trained[0].register_hook(self._gradient)
        else:
            adam.register_step_post_hook(lambda *_: self._remembered(setup))
        return setup

    def _is_due(self, step: int) -> bool:
        if step not in AT or step in self.done:
            return False
        self.done.append(step)
        return True

    def _scores(self, real: Scorer) -> Callable[..., list[float]]:
        def score(prompts: Any, responses: Any) -> list[float]:
            scores = real.score(prompts, responses)
            if self._is_due(len(self.observer.steps) + 1):
                scores[0] = self.value
            return scores

        return score

    def _forward(self, module: Any, given: Any, output: Any) -> None:
        trains = torch.is_grad_enabled()
        meant = self.observer.is_updating and trains == (self.place == "activation, training")
        if meant and self._is_due(len(self.observer.steps)):
            with torch.no_grad():
                output.last_hidden_state[..., 0] = self.value

    def _gradient(self, gradient: Tensor) -> Tensor:
        if not self._is_due(len(self.observer.steps)):
            return gradient
        broken = gradient.clone()
        broken.view(-1)[0] = self.value
        return broken

    @torch.no_grad()
    def _remembered(self, setup: Setup) -> None:
        if not self._is_due(len(self.observer.steps)):
            return
        learner = setup.learner
        parameter, name = learner.trained[0], "exp_avg"
        if self.place == "value head":
            assert learner.value_head is not None
            parameter = next(learner.value_head.parameters())
        broken = parameter
        if self.place.endswith("moment"):
            name = "exp_avg" if self.place == "first moment" else "exp_avg_sq"
            broken = learner.optimizer.state[parameter][name]
        broken.view(-1)[0] = self.value


def broken(place: Path, run: Path, case: Case) -> Outcome:
    """A run in which a number breaks, under no limit at all."""
    breaks = Break(case)
    observer = Observer(breaks)
    ended = go(run, settings(place, case), observer)
    faults = _unlike(observer, run)
    entries = {s.entry.step: s.entry for s in observer.steps if s.entry is not None}
    if case.what == "reward":
        # It is found as it is asked for: there is no update of it.
        if ended != "the reward" or AT[0] in entries:
            faults.append(f"the run went on: {ended}, {sorted(entries)}")
        return _outcome(case, observer, faults, None)._replace(breaches=1, actions={"end": 1})
    if breaks.done != list(AT):
        faults.append(f"nothing broke: {breaks.done}")
    faults += [f"kept in step {step}" for step in AT if entries[step].verdict.keeps]
    for step in observer.steps:
        if not all(bool(x.isfinite().all()) for x in step.after):
            faults.append("a weight is no number")
    return _outcome(case, observer, faults, None)


# All of them.


def free_run(place: Path, run: Path, algorithm: str, seed: int) -> dict[str, list[float]]:
    """What is limited, of each update of a run that nothing limits."""
    observer = Observer()
    go(run, settings(place, Case("", "", algorithm, seed)), observer)
    found = [observer.measure(step, step.after) for step in observer.steps]
    return {name: [each[name] for each in found] for name in found[0]}


def cases(seeds: int) -> Iterator[Case]:
    """Every limit in every mode, and every number that breaks; each seed with the algorithms in turn."""
    for seed in range(seeds):
        for number, what in enumerate(LIMITS):
            modes = ["reject", *([] if what in WHOLE else ["shrink"])]
            modes += ["rollback"] if what.endswith(("kl", "canary", "slice")) else []
            for mode in modes:
                yield Case(what, mode, ALGORITHMS[(number + seed) % 2], seed)
        for number, what in enumerate(PLACES):
            for offset, mode in enumerate(NUMBERS):
                algorithm = "ppo" if what == "value head" else ALGORITHMS[(number + offset) % 2]
                yield Case(what, mode, algorithm, seed)


def outcomes(place: Path, chosen: list[Case]) -> Iterator[Outcome]:
    """What comes of some cases."""
    free: dict[tuple[str, int], dict[str, list[float]]] = {}
    for number, case in enumerate(chosen):
        run, start = place / f"run-{number}", (case.algorithm, case.seed)
        if case.what in PLACES:
            outcome = broken(place / "given", run, case)
        else:
            if start not in free:
                free[start] = free_run(place / "given", place / f"free-{number}", *start)
            outcome = limited(place / "given", run, case, free[start])
        yield outcome
        shutil.rmtree(run)
