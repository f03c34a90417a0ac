"""What the processes of a run do as one: its record, its rewards, and that they are at the same point."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kleash.errors import ConfigError
from kleash.ledger import Ledger, encode
from kleash.models.identity import fingerprint, state_digest
from kleash.models.sharded import gathered
from kleash.rewards.combined import combine, joined, load_monitors, load_reward
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer
from kleash.train.config import RunConfig
from kleash.train.learner import Learner, resolve_device
from kleash.train.world import World, asks_to_shard


class JointRecord:
    """A ledger that one process writes once all have come to the same entry, with the same weights.

    None goes on before the entry is on the disk.

    Args:
        world: the processes.
        ledger: of the first; None on the others.
        learner: whose weights are compared.
    """

    def __init__(self, world: World, ledger: Ledger | None, learner: Learner) -> None:
        self.world, self.ledger, self.learner = world, ledger, learner

    def append(self, type: str, body: Mapping[str, Any]) -> None:
        """Takes an entry.

        Raises:
            ResourceError: the processes have come apart, one is gone, or the disk failed.
        """
        found = {name: hashlib.sha256(encode(value)).hexdigest() for name, value in body.items()}
        found["weights"] = str(fingerprint(_numbered(_held_by_all(self.learner))))
        self.world.agree(f"{type} of step {body.get('step')}", found)
        if self.ledger is not None:
            self.ledger.append(type, body)
        self.world.meet()


def as_launched(config: RunConfig, world: World) -> RunConfig:
    """The configuration with what the launcher was asked for: several processes divide weights where it says so."""
    if world.size == 1 or not asks_to_shard():
        return config
    train = config.train.model_copy(update={"shard": True})
    return config.model_copy(update={"train": train})


def check_together(config: RunConfig, world: World) -> None:
    """That so many processes can make a run, and are asked for the same one.

    Raises:
        ConfigError: they can't.
        ResourceError: they aren't.
    """
    if world.size == 1:
        return
    if world.size > config.rollout.num_prompts:
        raise ConfigError(
            "there are more processes than prompts in a rollout",
            expected=f"at most rollout.num_prompts = {config.rollout.num_prompts} processes: each answers whole groups",
            got=str(world.size),
            do="launch fewer, or raise rollout.num_prompts",
        )
    if config.algorithm.update == "natural":
        raise ConfigError(
            f"{config.algorithm.name} can't be made by several processes",
            expected="an algorithm that goes down a gradient: conjugate gradients are not divided among processes",
            got=f"{config.algorithm.name} on {world.size}",
            do='launch one, or set algorithm.name = "ppo", which clips each token\'s step in place of a trust region',
        )
    if config.train.shard:
        _check_sharding(config, world)
    asked = config.model_dump(mode="json")
    world.agree(
        "the configuration",
        {name: hashlib.sha256(encode(section)).hexdigest() for name, section in asked.items()},
    )


def _check_sharding(config: RunConfig, world: World) -> None:
    if isinstance(config.model.reference, dict):
        raise ConfigError(
            "the weights of several references can't be divided among processes",
            expected="one model.reference, or none, where train.shard is true",
            got=f"{len(config.model.reference)}",
            do="name one, or leave train.shard out: every process then holds all of them",
        )
    if resolve_device(config.train.device) != "cpu" and not world.over_gpus:
        raise ConfigError(
            "weights can't be divided among processes that share a GPU",
            expected="a GPU for each process where train.shard is true",
            got=f"{world.size} processes, {torch.cuda.device_count()} GPUs here",
            do="launch as many processes as there are GPUs",
        )


def check_as_one(world: World, learner: Learner) -> None:
    """That weights and optimiser are the same on every process, bit by bit; or what all gather of them, if divided.

    Raises:
        ResourceError: they aren't.
    """
    if world.size > 1:
        weights = [learner.joined(i, own) for i, own in enumerate(learner.trained)]
        tensors = {"weights": weights, "optimiser": _remembered(learner)}
        world.agree(
            "the weights",
            {name: state_digest(gathered(_numbered(each))) for name, each in tensors.items()},
        )


def load_scorers(
    config: RewardConfig, device: str, world: World
) -> tuple[Scorer, Sequence[Scorer]]:
    """The reward and the monitors. The first process asks them for all rows, and tells the others what they said.

    So a reward that looks at other responses of the batch, draws at random or costs money is asked as one process would
    ask it. The other processes load none.

    Raises:
        InputError, ConfigError: one can't be had.
    """
    if world.size == 1:
        return load_reward(config, device), load_monitors(config, device)
    if not world.is_first:
        return _heard(config, world)
    reward, monitors = load_reward(config, device), load_monitors(config, device)
    return _telling(reward, world), [_telling(each, world) for each in monitors]


def _heard(config: RewardConfig, world: World) -> tuple[Scorer, Sequence[Scorer]]:
    """Scorers that another process asks."""

    def hearing(name: str) -> Scorer:
        return Scorer(name=name, score=lambda _prompts, _responses: world.told())

    monitors = [hearing(name) for name in config.monitor]
    names = config.names if config.has_parts else [config.name]
    return combine(config, [hearing(name) for name in names]), monitors


def _telling(scorer: Scorer, world: World) -> Scorer:
    """A scorer whose scores the other processes are told, part by part where it has some."""
    if scorer.rule is not None:
        return joined(scorer.name, [_telling(part, world) for part in scorer.parts], scorer.rule)
    ask = scorer.score
    return replace(scorer, score=lambda prompts, responses: world.told(ask(prompts, responses)))


def _numbered(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {str(index): tensor for index, tensor in enumerate(tensors)}


def _remembered(learner: Learner) -> list[Tensor]:
    """What the optimiser holds, in the order of the weights."""
    state = learner.optimizer.state
    found = [(index, state[p]) for index, p in enumerate(learner.trained) if p in state]
    return [
        learner.joined(index, each[name])
        for index, each in found
        for name in sorted(each)
        if isinstance(each[name], Tensor)
    ]


def _held_by_all(learner: Learner) -> list[Tensor]:
    """The trained weights that every process has, and can be told apart by: none has another's part of the rest."""
    division = learner.division
    return learner.trained if division is None else division.held_whole(learner.trained)
