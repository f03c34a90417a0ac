"""The configuration of a training run: eleven sections, each owned by the room that it turns."""

from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from kleash.control import ControlConfig
from kleash.functional.penalties import (
    DEFAULT_ESTIMATORS,
    EstimatorName,
    Penalty,
    Placement,
    Weight,
    check_penalty,
)
from kleash.guard import GuardConfig
from kleash.models.config import ModelConfig
from kleash.rewards.config import RewardConfig
from kleash.rollout.config import RolloutConfig
from kleash.train.algorithms import ALGORITHMS, AlgorithmConfig, resolve_algorithm
from kleash.train.optimizer_config import OptimizerConfig
from kleash.train.ptx_config import PtxConfig
from kleash.train.tracker_config import TrackerOptions

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class DataConfig(BaseModel):
    """The `[data]` section: what the policy is asked."""

    model_config = _FROZEN

    prompts: str = "tiny-reviews/prompts"
    """An embedded name, a text file with one prompt a line, or JSONL with a `prompt` field."""


class PenaltyConfig(BaseModel):
    """The `[penalty]` section: where the KL penalty acts, by which estimate. What is wrong is refused, with the reason.

    Examples:
        >>> PenaltyConfig().resolved
        Penalty(placement='exact', estimator='exact', weight='none', chi_squared=0.0)
    """

    model_config = _FROZEN

    placement: Placement = "exact"
    """`exact`: the gradient of the sequence KL, its local term in the loss and what follows in the reward; `reward`,
    the same with the local term estimated there; `loss`: the local term alone; `forward`: k3's, of KL(π_ref‖π)."""
    estimator: EstimatorName | None = None
    """`exact` over the whole vocabulary, or `k1`, `k2`, `k3` of the token drawn; None: the placement's own."""
    weight: Weight = "none"
    """What multiplies an estimate in the loss: `ratio` (π/π_old with its gradient), `detached` (as a number),
    `score` (1 with its gradient)."""
    chi_squared: FiniteFloat = Field(default=0.0, ge=0)
    """c of β (KL + (c/2) χ²(π‖π_ref)), of whole responses: with it no response becomes more than
    1 + (R_max − R_min)/(β c) times likelier; 0: KL alone."""

    @property
    def resolved(self) -> Penalty:
        """The penalty meant."""
        estimator = self.estimator or DEFAULT_ESTIMATORS[self.placement]
        return Penalty(self.placement, estimator, self.weight, self.chi_squared)

    @model_validator(mode="after")
    def _descends_what_it_says(self) -> Self:
        check_penalty(self.resolved)
        return self


class TrainConfig(BaseModel):
    """The `[train]` section: how long, from which seed, on what."""

    model_config = _FROZEN

    steps: int = Field(default=100, gt=0)
    """Rollouts and their updates."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of everything random. The same configuration and seed give the same metrics, bit for bit, on one machine."""
    device: str = "auto"
    """`auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1` …"""
    threads: int | None = Field(default=None, gt=0, le=4096)
    """CPU threads; None: as many as torch takes by itself."""
    micro_batch_size: int = Field(default=32, gt=0)
    """Responses per forward and backward pass: changes memory, and results in their last digits only."""
    shard: bool = False
    """Whether several processes have a part of the weights each; one process has them all."""
    sample_every: int = Field(default=10, gt=0)
    """Steps between the samples written to samples.jsonl; the last step always writes them."""
    num_samples: int = Field(default=8, gt=0)
    """Prompts sampled for it: the first of the file, so that runs can be compared."""
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps between checkpoints, of which the newest two are kept; a run that is stopped leaves one too."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Names that accelerate knows: tensorboard, wandb, mlflow, trackio …"""
    tracker_options: TrackerOptions = TrackerOptions()
    """What trackers call the run, and where they write."""


DEFAULT_TARGET = 6.0
"""Nats per response, where nothing is said of β: Ziegler et al. 2019 held 6 to 10."""


class RunConfig(BaseModel):
    """A whole training run.

    Examples:
        >>> RunConfig(rl=ControlConfig(kl_target=4.0)).rollout.num_responses
        64
    """

    model_config = _FROZEN

    RENAMED: ClassVar[dict[str, str]] = {"ppo": "algorithm"}
    """Sections of 0.1.0."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    rl: ControlConfig = ControlConfig(kl_target=DEFAULT_TARGET)
    algorithm: Annotated[AlgorithmConfig, BeforeValidator(resolve_algorithm)] = AlgorithmConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    ptx: PtxConfig = PtxConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    guard: GuardConfig = GuardConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _corrects_what_is_stale(self) -> Self:
        if self.rollout.staleness and self.algorithm.correction == "none":
            raise ValueError(
                'algorithm.correction = "token" or "sequence" where rollout.staleness is over 0: '
                "another policy sampled what is learnt from"
            )
        return self

    @model_validator(mode="after")
    def _corrects_where_it_says_how(self) -> Self:
        algorithm, fields = self.algorithm, AlgorithmConfig.model_fields
        for name in ("correction_cap", "correction_drop"):
            if algorithm.correction == "none" and getattr(algorithm, name) != fields[name].default:
                raise ValueError(
                    f'no algorithm.{name} without algorithm.correction = "token" or "sequence"'
                )
        return self

    @model_validator(mode="after")
    def _has_responses_for_every_minibatch(self) -> Self:
        responses = self.rollout.num_prompts * self.rollout.group_size
        if self.algorithm.update == "gradient" and self.algorithm.num_minibatches > responses:
            raise ValueError(
                f"algorithm.num_minibatches of at most {responses}: rollout.num_prompts · rollout.group_size responses "
                "are split into them"
            )
        return self

    @model_validator(mode="after")
    def _is_of_several(self) -> Self:
        penalty = self.penalty.resolved
        if isinstance(self.model.reference, dict) and penalty.estimator == "k3":
            raise ValueError(
                f'penalty.placement = "exact" with several references: {penalty.placement} k3 takes π_ref for a '
                "distribution, and what several are held to by weights is none"
            )
        if isinstance(self.model.reference, dict) and penalty.chi_squared:
            raise ValueError(
                "no penalty.chi_squared with several references: it is of π/π_ref, and what several are held to by "
                "weights is no distribution"
            )
        if penalty.chi_squared and self.rollout.num_responses == 1:
            raise ValueError(
                "rollout.group_size of at least 2 with penalty.chi_squared: what is charged for it is compared"
            )
        return self

    @model_validator(mode="after")
    def _steps_with_what_it_keeps(self) -> Self:
        if self.ptx.data is not None and self.algorithm.update == "natural":
            raise ValueError(
                f"no ptx.data with {self.algorithm.name}, whose line search compares losses of one batch: "
                "algorithm.name = ppo takes one"
            )
        return self

    @model_validator(mode="after")
    def _has_what_its_alarms_watch(self) -> Self:
        if self.guard.alarms.concordance is not None and not self.reward.monitor:
            raise ValueError(
                "reward.monitor where guard.alarms.concordance is set: it is how far the first one agrees with the "
                "reward"
            )
        if self.guard.alarms.concordance is not None and self.rollout.group_size == 1:
            raise ValueError(
                "rollout.group_size of at least 2 where guard.alarms.concordance is set: it compares the responses to "
                "one prompt"
            )
        return self

    @model_validator(mode="after")
    def _penalises_lengths_that_there_are(self) -> Self:
        if self.reward.length_penalty and self.reward.length_free >= self.rollout.max_new_tokens:
            raise ValueError(
                f"reward.length_free below rollout.max_new_tokens, {self.rollout.max_new_tokens}: "
                "no response is longer, so that none would be penalised"
            )
        return self

    @model_validator(mode="after")
    def _has_what_it_compares(self) -> Self:
        baseline, group_size = self.algorithm.baseline, self.rollout.group_size
        with_values = ALGORITHMS[self.algorithm.name].value_loss is not None
        if (baseline == "value") != with_values:
            raise ValueError(
                f'algorithm.baseline = "value" for {self.algorithm.name}: its value head is what it learns beside'
                if with_values
                else f'algorithm.baseline other than "value": {self.algorithm.name} has no value head; '
                'algorithm.name = "ppo" has'
            )
        if group_size == 1 and (
            baseline in {"group", "leave_one_out"} or self.algorithm.scale == "group"
        ):
            raise ValueError(
                f"rollout.group_size of at least 2: {self.algorithm.name} compares the responses to one prompt"
            )
        return self
