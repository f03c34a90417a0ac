"""Algorithms against the optimum that is known: the training loop on problems that can be enumerated.

The policy is a table, and everything else is what trains language models: sampler, meter, targets, losses, updates,
guard and ledger. DPO, which has no rollouts, stands beside it. J* = β log Z, and for every policy
J* − J(π) = β·KL(π‖π*), so that nothing reported is an estimate.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.lab.mdp import MDP, optimum
from kleash.lab.preferences import fit_preferences
from kleash.lab.processes import side_by_side
from kleash.lab.tabular import Table, table_reward, tabular, value_column
from kleash.ledger import Ledger, SigningKey
from kleash.models.hub import freeze
from kleash.train.algorithms import ALGORITHMS
from kleash.train.config import RunConfig
from kleash.train.learner import Learner, trainable
from kleash.train.loop import run_loop
from kleash.train.setup import Setup

Observer = Callable[[int], None]
"""Told each step."""
Sections = Mapping[str, Mapping[str, Any]]


class Budget(NamedTuple):
    """What an algorithm is given; the learning rate falls to 0."""

    num_responses: int
    steps: int
    learning_rate: float
    settings: Mapping[str, Any] = {}
    """Of `[algorithm]`."""


PLAIN = Budget(512, 1500, 0.05)
BUDGETS: dict[str, Budget] = {
    "ppo": Budget(2048, 1500, 0.01, {"num_epochs": 2, "num_minibatches": 4}),
    "ppo_kl": Budget(2048, 1500, 0.01, {"num_epochs": 2, "num_minibatches": 4}),
    # With more gradient steps a rollout its clip of 3e-4 cuts the policy's part of the loss, and not the penalty's.
    "gspo": Budget(512, 1500, 0.05, {"num_epochs": 1, "num_minibatches": 1}),
    # A natural step is of what was drawn in each row: many visits, about one of them for damping, and products enough
    # for conjugate gradients to come to the rarest.
    "trpo": Budget(32_768, 125, 1.0, {"cg_iterations": 20, "cg_damping": 1e-5}),
    "dpo": Budget(4096, 2000, 0.05),
}
"""Where an algorithm needs another than `PLAIN`."""
GROUP_SIZE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a policy stands, by enumeration; nats are per response."""

    j: float
    """E[R] − β·KL(π‖π_ref)."""
    gap: float
    """J* − J."""
    gain_lost: float | None
    """Of J* − J(π_ref), what there is to gain; None where that is nothing."""
    reward: float
    kl: float
    """KL(π‖π_ref)."""
    kl_to_optimum: float
    """KL(π‖π*); the gap is β times it."""


def standing(mdp: MDP, logits: Tensor, beta: float) -> Standing:
    """The value of a policy against J*.

    Args:
        mdp: the problem.
        logits: [S, V] of the policy.
        beta: β.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> mdp = golden()
        >>> round(standing(mdp, mdp.ref_logits, beta=0.2).gap, 8)  # J* − E_ref[R]
        0.92590135
        >>> standing(mdp, optimum(mdp, 0.2), beta=0.2).kl_to_optimum
        0.0
    """
    best, reference = optimum(mdp, beta), mdp.ref_logits
    (j, reward, kl, to_optimum), (j_star, *_), (j_reference, *_) = (
        _values(mdp, table.double(), reference, best, beta) for table in (logits, best, reference)
    )
    gain = j_star - j_reference
    return Standing(
        j=j,
        gap=j_star - j,
        gain_lost=(j_star - j) / gain if gain > 0 else None,
        reward=reward,
        kl=kl,
        kl_to_optimum=to_optimum,
    )


def _values(
    mdp: MDP, logits: Tensor, reference: Tensor, best: Tensor, beta: float
) -> tuple[float, float, float, float]:
    """J, reward, KL to the reference and KL to the optimum."""
    own, ref, optimal = (mdp.logprobs(table).sum(-1) for table in (logits, reference, best))
    law = own.exp()
    reward, kl, to_optimum = (float(law @ x) for x in (mdp.rewards, own - ref, own - optimal))
    return reward - beta * kl, reward, kl, to_optimum


class Attained(NamedTuple):
    """What an algorithm made of a problem."""

    standing: Standing
    policy: list[list[float]]
    """[S, V], log-probabilities; numbers, as a tensor crosses to another process by a handle that ends with its own."""
    seconds: float


def solve(
    mdp: MDP,
    name: str,
    beta: float,
    seed: int,
    *,
    budget: Budget | None = None,
    sections: Sections | None = None,
    observer: Observer = lambda step: None,
) -> Attained:
    """Trains a table from the reference, and says where it stands.

    Args:
        mdp: the problem.
        name: of `algorithm_names()`.
        beta: β, held.
        seed: of everything random.
        budget: what it may use; None: `BUDGETS`.
        sections: what else is set, by section of a run's configuration, such as {"penalty": {"placement": "reward"}};
            DPO has none.
        observer: told each step.
    """
    budget, started = budget or budget_of(name), time.perf_counter()
    if name == "dpo":
        policy = fit_preferences(
            mdp,
            beta,
            seed,
            num_pairs=budget.num_responses // 2,
            steps=budget.steps,
            learning_rate=budget.learning_rate,
            observer=observer,
        )
        return _attained(mdp, policy, beta, started)
    setup = set_up(mdp, configure(mdp, name, beta, seed, budget, sections or {}))
    signers = [SigningKey.generate()]  # a record that nobody keeps
    with TemporaryDirectory() as directory, Ledger.create(Path(directory), signers) as ledger:
        for record in run_loop(setup, ledger):
            observer(record.step)
    table = setup.learner.policy.model
    assert isinstance(table, Table)
    return _attained(mdp, torch.log_softmax(table.logits, -1), beta, started)


def _attained(mdp: MDP, policy: Tensor, beta: float, started: float) -> Attained:
    seconds = time.perf_counter() - started
    return Attained(standing(mdp, policy, beta), policy.tolist(), seconds)


def configure(
    mdp: MDP, name: str, beta: float, seed: int, budget: Budget, sections: Sections
) -> RunConfig:
    """What `kleash train` would be told of such a run."""
    settings: dict[str, dict[str, Any]] = {
        "rollout": {
            "num_prompts": budget.num_responses // GROUP_SIZE,
            "group_size": GROUP_SIZE,
            "max_new_tokens": mdp.length,
        },
        "rl": {"controller": "fixed", "kl_coef": beta},
        "algorithm": {"name": name, **budget.settings},
        "optimizer": {
            "learning_rate": budget.learning_rate,
            "schedule": "linear",
            # A row of a table is visited once in many steps: its squared gradient is to be remembered for as long.
            "beta2": 0.999,
            "max_grad_norm": 1e6,
        },
        "train": {
            "steps": budget.steps,
            "seed": seed,
            "device": "cpu",
            "micro_batch_size": budget.num_responses,
            "sample_every": budget.steps,
            "num_samples": 1,
            "trackers": [],
        },
    }
    for section, more in sections.items():
        settings[section] = {**settings.get(section, {}), **more}
    return RunConfig.model_validate(settings)


def set_up(mdp: MDP, config: RunConfig) -> Setup:
    """A table as policy and reference, its optimiser, and the problem's reward."""
    policy = tabular(mdp)
    reference = freeze(policy)
    with_values = ALGORITHMS[config.algorithm.name].value_loss is not None
    trained = trainable(policy)
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.optimizer.learning_rate,
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        weight_decay=0.0,
        fused=True,
    )
    origin = reference if config.model.refresh_every is None else freeze(reference)
    values = value_column(mdp) if with_values else None
    learner = Learner(policy, reference, origin, values, optimizer, trained)
    return Setup(
        config=config,
        learner=learner,
        prompts=[""] * config.rollout.num_prompts,
        reward=table_reward(mdp),
        monitors=[],
    )


class Job(NamedTuple):
    """One run of many, to be made in a process of its own."""

    mdp: MDP
    name: str
    beta: float
    seed: int
    budget: Budget

    def __call__(self, observer: Callable[[tuple[str, int]], None]) -> Attained:
        """The run; tells its algorithm and step."""
        torch.set_num_threads(1)
        return solve(
            self.mdp,
            self.name,
            self.beta,
            self.seed,
            budget=self.budget,
            observer=lambda step: observer((self.name, step)),
        )


def algorithm_names() -> list[str]:
    """All that `solve` knows."""
    return [*ALGORITHMS, "dpo"]


def budget_of(name: str, steps: int | None = None) -> Budget:
    """What an algorithm is given; with other steps where they are named."""
    budget = BUDGETS.get(name, PLAIN)
    return budget if steps is None else budget._replace(steps=steps)


def solve_all(
    jobs: Sequence[Job], observer: Callable[[tuple[str, int]], None]
) -> dict[str, list[Attained]]:
    """Runs every job, as many at once as there are cores; by algorithm, in the order of seeds."""
    tasks = {f"{job.name} {job.seed}": job for job in jobs}
    done = side_by_side(tasks, observer, at_once=os.cpu_count() or 1)
    return {
        name: [done[key] for key, job in tasks.items() if job.name == name]
        for name in dict.fromkeys(job.name for job in jobs)
    }


def median_run(runs: Sequence[Attained]) -> Attained:
    """The run whose J is the median; of an even number the better of the middle two."""
    return sorted(runs, key=lambda run: run.standing.j)[len(runs) // 2]
