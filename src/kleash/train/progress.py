"""A run between two steps: all that the next step follows from, beside the weights.

A `Mark` is that as values, which a checkpoint stores and a run resumes from; a `Progress` is a run on its way.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from kleash import control, guard
from kleash.guard import GuardConfig, GuardState
from kleash.records import CanaryFacts
from kleash.replay import Plan
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded
from kleash.train.data import Shuffled
from kleash.train.setup import Setup


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What became of the updates so far."""

    accepted: int = 0
    refused: int = 0
    last_refusal: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Where a run is."""

    step: int
    """Steps made."""
    control: control.State
    guard: GuardState
    step_coef: float
    """Weight of KL(old‖new) in the next update's loss."""
    kept: bool = True
    """Whether the last update was."""
    tally: Tally = Tally()
    streams: dict[str, Tensor] = field(repr=False)
    """The states of the generators, by their purpose."""
    shuffles: dict[str, tuple[tuple[int, ...], int]] = field(repr=False)
    """The order of prompts and of texts, and how many of it are taken."""
    waiting: tuple[Rollout, ...] = field(default=(), repr=False)
    """Rollouts that were sampled ahead of their step."""


def governed(setup: Setup, limits: GuardConfig) -> Setup:
    """The setup under other limits."""
    return replace(setup, config=setup.config.model_copy(update={"guard": limits}))


class Progress:
    """A run on its way.

    Args:
        setup: of the run.
        mark: where it goes on from; None: it begins.
    """

    def __init__(self, setup: Setup, mark: Mark | None = None) -> None:
        config = setup.config
        self.setup, self.plan = setup, Plan(config.guard)
        self.generator = seeded(config.train.seed, "training")
        self.prompts = Shuffled(setup.prompts, config.rollout.num_prompts, self.generator)
        self.waiting: deque[Rollout] = deque()
        self.under: list[Tensor] | None = None
        """The last weights that were metered under `guard.max_kl` and then changed."""
        self.answers: Mapping[str, Any] | None = None
        """What the reference answered to the prompts of the samples, and the scores of that."""
        self.process: dict[str, Tensor] = {}
        """The states of the process's own streams, which a reward may draw from, as the last step left them."""
        self.mark = mark or self._take(
            Mark(
                step=0,
                control=control.init(config.rl),
                guard=guard.start(config.guard, config.train.steps),
                step_coef=config.algorithm.step_penalty,
                streams={},
                shuffles={},
            )
        )
        if mark is not None:
            self._put(mark)
            self.settle_canary()

    def govern(self, step: int) -> Setup:
        """The setup with the limits of a step, to which the guard's state is carried over."""
        config, limits, mark = self.setup.config, self.plan.at(step), self.mark
        if limits != config.guard:
            carried = guard.carry(mark.guard, config.guard, limits, config.train.steps)
            self.mark = replace(mark, guard=carried)
            self.setup = governed(self.setup, limits)
        return self.setup

    def next_rollout(self) -> Rollout:
        """A rollout of the policy as it was `rollout.staleness` rollouts ago; the newest is of the policy as it is."""
        config = self.setup.config.rollout
        while len(self.waiting) <= config.staleness:
            prompts = next(self.prompts)
            setup = self.setup
            self.waiting.append(
                sample(setup.learner.policy, prompts, config, self.generator, setup.world)
            )
        return self.waiting.popleft()

    def advance(
        self, *, state: control.State, guard: GuardState, step_coef: float, kept: bool, tally: Tally
    ) -> None:
        """One step further: the weights as they are now are settled."""
        after = replace(
            self.mark,
            step=self.mark.step + 1,
            control=state,
            guard=guard,
            step_coef=step_coef,
            kept=kept,
            tally=tally,
        )
        self.mark = self._take(after)
        self.setup.learner.settled = True

    def hold(self) -> Mark:
        """The streams and orders as they now are, for `rewind`."""
        return self._take(self.mark)

    def rewind(self, held: Mark) -> None:
        """Puts back what an update that is undone had drawn."""
        self._put(held)

    def settle_canary(self, facts: CanaryFacts | None = None) -> None:
        """Has later updates measured from the policy as it now is, of which this was measured."""
        if self.setup.canary is not None:
            self.setup.canary.settle(self.setup.learner.policy, facts)

    def _take(self, mark: Mark) -> Mark:
        """The mark with the streams and orders as they now are."""
        streams, shuffles = {"training": self.generator}, {"prompts": self.prompts}
        if (texts := self.setup.pretraining) is not None:
            streams["pretraining"], shuffles["texts"] = texts.generator, texts.batches
        return replace(
            mark,
            streams={name: stream.get_state() for name, stream in streams.items()},
            shuffles={name: (tuple(each.order), each.taken) for name, each in shuffles.items()},
            waiting=tuple(self.waiting),
        )

    def _put(self, mark: Mark) -> None:
        """Streams and orders as a mark has them."""
        self.generator.set_state(mark.streams["training"])
        self.prompts.go_to(*mark.shuffles["prompts"])
        self.waiting = deque(mark.waiting)
        if (texts := self.setup.pretraining) is not None:
            texts.generator.set_state(mark.streams["pretraining"])
            texts.batches.go_to(*mark.shuffles["texts"])
