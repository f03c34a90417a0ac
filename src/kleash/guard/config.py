"""The `[guard]` section: limits that hold whatever β is, and alarms."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from kleash.errors import ConfigError
from kleash.guard.budget import MOST_UPDATES
from kleash.guard.detectors import DetectorPlan, Side

_FROZEN = ConfigDict(frozen=True, extra="forbid")

WATCHED: dict[str, Side] = {
    "kl": "upper",
    "kl_new_old": "upper",
    "entropy": "lower",
    "length": "lower",
    "concordance": "lower",
}
"""What an alarm may be about, and which side of its mean is the wrong one."""

AlarmAction = Literal["warn", "raise", "rollback", "halt"]
"""What an alarm does beside saying so: nothing; more β; back to the last checkpoint; an end."""


class AlarmConfig(BaseModel):
    """One alarm: a mean that is planned, and what is done when the readings speak against it.

    Examples:
        >>> AlarmConfig(mean=0.01).plan("kl_new_old").bound
        0.2
    """

    model_config = _FROZEN

    mean: FiniteFloat
    """Planned: of `kl` (nats per response) and `kl_new_old` (nats per token) at most this; of `entropy` (nats per
    token), `length` (tokens) and `concordance` (−1 to 1) at least this."""
    bound: FiniteFloat | None = Field(default=None, gt=0)
    """What a reading counts for at most; None: 20 times the mean, or 4 times where too little is what rings."""
    mean_time: FiniteFloat = Field(default=1e4, ge=1)
    """Updates to a false alarm, on average, at least."""
    from_step: int = Field(default=1, ge=1)
    """The first step that is watched: of a warm-up, another mean may be planned than of what follows."""
    action: AlarmAction = "warn"

    def plan(self, name: str) -> DetectorPlan:
        """The detector's plan.

        Raises:
            ConfigError: there can be no detector of such a mean and bound.
        """
        side = WATCHED[name]
        if name == "concordance":  # 1 + C, as a detector's values begin at 0
            return DetectorPlan(
                bound=2.0, mean=1.0 + self.mean, mean_time=self.mean_time, side=side
            )
        bound = self.bound or (20.0 if side == "upper" else 4.0) * self.mean
        return DetectorPlan(bound=bound, mean=self.mean, mean_time=self.mean_time, side=side)


class AlarmsConfig(BaseModel):
    """Alarms by what they watch; None: it isn't watched."""

    model_config = _FROZEN

    kl: AlarmConfig | None = None
    """KL(π‖π_ref) per response."""
    kl_new_old: AlarmConfig | None = None
    """KL(new‖old) of one update, per token."""
    entropy: AlarmConfig | None = None
    """Of the policy, per token: collapse."""
    length: AlarmConfig | None = None
    """Mean tokens of a response: collapse."""
    concordance: AlarmConfig | None = None
    """How far the first monitor prefers what the reward prefers: a reward that is being gamed."""

    def plans(self) -> dict[str, tuple[AlarmConfig, DetectorPlan]]:
        """Those that are set."""
        alarms = {name: getattr(self, name) for name in WATCHED}
        return {name: (x, x.plan(name)) for name, x in alarms.items() if x is not None}

    @model_validator(mode="after")
    def _can_be_detected(self) -> Self:
        for name in WATCHED:
            alarm: AlarmConfig | None = getattr(self, name)
            try:
                _ = alarm and alarm.plan(name)
            except ConfigError as error:
                what = (
                    f"{name}.mean and {name}.bound of a detector: {error.expected}, not {error.got}"
                )
                raise ValueError(what) from error
        return self


class GuardConfig(BaseModel):
    """Hard limits, a budget and alarms. An update that is not a number is refused under every configuration.

    Of limits that are not set nothing is refused; of those that are, what was not measured counts as over.

    Examples:
        >>> GuardConfig(max_kl=20.0).max_kl
        20.0
    """

    model_config = _FROZEN

    max_kl: FiniteFloat | None = Field(default=None, gt=0)
    """KL(π‖π_ref) in nats per response: no update is accepted that brings the policy over it on its rollout's states,
    and a policy that is over it on its own is rolled back, or training halts."""
    max_kl_new_old: FiniteFloat | None = Field(default=None, gt=0)
    """KL(new‖old) of one update, nats per token, mean."""
    max_kl_new_old_p99: FiniteFloat | None = Field(default=None, gt=0)
    """The same, of all tokens but one in a hundred."""
    max_kl_new_old_token: FiniteFloat | None = Field(default=None, gt=0)
    """The same, at any token."""
    max_log_ratio: FiniteFloat | None = Field(default=None, gt=0)
    """|log new/old| of any token that was drawn, nats."""
    min_entropy: FiniteFloat | None = Field(default=None, gt=0)
    """Mean entropy that an update must leave the policy, nats per token."""
    max_raw_grad_norm: FiniteFloat | None = Field(default=None, gt=0)
    """Norm of the gradient before it is clipped, mean over an update's steps."""
    max_mismatch: FiniteFloat | None = Field(default=None, gt=0)
    """KL(μ‖π) in nats per token of the sampler from the policy that learns: stale or wrong weights."""
    canary: str | None = None
    """Prompts whose states the policy is measured at, the same at each step: a file as of `data.prompts`, JSON lines
    with `slice`; None: the first of `data.prompts`, where something below needs them."""
    canary_prompts: int = Field(default=16, gt=0, le=4096)
    """How many of them."""
    max_kl_canary: FiniteFloat | None = Field(default=None, gt=0)
    """KL(π‖π_ref) there, nats per response."""
    max_kl_slice: FiniteFloat | None = Field(default=None, gt=0)
    """The same on the prompts of any one slice."""
    max_path_log_ratio: FiniteFloat | None = Field(default=None, gt=0)
    """Budget of the whole run: Σ over updates of max |log new/old| there, nats. The policy is then no further from
    where it began."""
    max_path_variation: FiniteFloat | None = Field(default=None, gt=0)
    """The same of total variation: Σ of its mean over those states."""
    burst: FiniteFloat = Field(default=4.0, ge=1, le=MOST_UPDATES)
    """Equal shares of a budget that one update may cost at most."""
    on_breach: Literal["shrink", "reject"] = "shrink"
    """What is done with an update over a limit: as much of it is kept as meets the limits, or nothing."""
    stop_kl: FiniteFloat | None = Field(default=None, gt=0)
    """No further gradient step is made of a rollout once KL(new‖old) is estimated over this, nats per token."""
    rollback_after: int = Field(default=3, gt=0)
    """Refused updates among `rollback_window`, after which the run goes back to its last good checkpoint."""
    rollback_window: int = Field(default=20, gt=0, le=10_000)
    max_rollbacks: int = Field(default=3, ge=0)
    """In a whole run; where one more is called for, it halts."""
    raise_coef: FiniteFloat = Field(default=2.0, ge=1)
    """What β is multiplied by at a rollback, and by an alarm that raises it."""
    alarms: AlarmsConfig = AlarmsConfig()

    @property
    def needs_canary(self) -> bool:
        """Whether anything is measured at the canary's states."""
        limits = (self.max_kl_canary, self.max_kl_slice)
        budget = (self.max_path_log_ratio, self.max_path_variation)
        return self.canary is not None or any(x is not None for x in (*limits, *budget))
