"""The `[rl]` section: which controller sets β, from what start, to what target."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from kleash.records import Unit

MIN_KL_COEF = 1e-9
MAX_KL_COEF = 1e9
"""The rails of a moving β, far outside any useful value: it neither dies at 0 nor overflows."""

ControllerName = Literal["fixed", "schedule", "ziegler", "ppo", "dual", "pid", "tilt"]
WITHOUT_TARGET = ("fixed", "schedule")
"""Controllers that look at no reading."""

RENAMED = (
    ("controller", "adaptive", "controller = 'ziegler', as 'adaptive' is called now"),
    ("kl_horizon", None, "ziegler.horizon, as kl_horizon is called now"),
    ("kl_error_clip", None, "ziegler.error_clip, as kl_error_clip is called now"),
)
"""Keys of 0.1.0, with the value that is meant, or None for any; and what to write."""

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class ScheduleConfig(BaseModel):
    """`[rl.schedule]`: β as a function of the step alone."""

    model_config = _FROZEN

    shape: Literal["constant", "linear", "cosine"] = "linear"
    """How β goes from `rl.kl_coef` to `end`."""
    end: FiniteFloat = Field(default=0.0, ge=0)
    """β from step `steps` on."""
    steps: int = Field(default=100, gt=0)
    warmup: int = Field(default=0, ge=0)
    """Steps over which β first rises linearly from 0."""


class ZieglerConfig(BaseModel):
    """`[rl.ziegler]`: β ← β (1 + K e), e = clip(KL/target − 1, ±error_clip)."""

    model_config = _FROZEN

    gain: FiniteFloat | None = Field(default=None, gt=0, le=1)
    """K as in the paper, which has 0.1; None: the released code's K = responses/horizon."""
    horizon: int = Field(default=10_000, gt=0, le=10**12)
    """Episodes: K is 0.0512 at 512 responses, and 0.0032 at 32."""
    error_clip: FiniteFloat = Field(default=0.2, gt=0, lt=1)


class DualConfig(BaseModel):
    """`[rl.dual]`: β ← β + rate (KL − target)."""

    model_config = _FROZEN

    rate: FiniteFloat = Field(default=0.01, gt=0)
    """Reward per nat, per nat of error and step."""


class PIDConfig(BaseModel):
    """`[rl.pid]`: gains per step of log β on the relative error."""

    model_config = _FROZEN

    kp: FiniteFloat = Field(default=1.0, ge=0)
    ki: FiniteFloat = Field(default=0.04, ge=0)
    kd: FiniteFloat = Field(default=0.0, ge=0)
    smoothing: FiniteFloat = Field(default=0.5, gt=0, le=1)
    """Weight of the new reading in the average that the error is taken of."""
    slew: FiniteFloat = Field(default=0.3, gt=0, lt=1)
    """Largest change of log β in one step."""


class TiltConfig(BaseModel):
    """`[rl.tilt]`: how soon the target is to be met, and what β may do on the way."""

    model_config = _FROZEN

    steps_to_target: FiniteFloat = Field(default=1.5, ge=1, le=1000)
    """Steps in which the predicted distance to the target is to be closed, where the policy can move so fast."""
    slew: FiniteFloat = Field(default=4.0, gt=1, le=1000)
    """Largest factor between two steps' β, but where less is needed not to throw the policy past the reference."""
    loosest: FiniteFloat = Field(default=0.2, gt=0, lt=1)
    """Smallest β on the way up, in units of the β that would hold the target."""
    tightest: FiniteFloat = Field(default=3.0, gt=1, le=1000)
    """Largest β on the way down, likewise."""


class ControlConfig(BaseModel):
    """How β, the coefficient of the KL penalty, is chosen.

    Examples:
        >>> ControlConfig(kl_target=6.0).controller
        'tilt'
    """

    model_config = _FROZEN

    controller: ControllerName = "tilt"
    """`tilt` holds `kl_target`; so do, each in its way, `ziegler`, `ppo`, `dual` and `pid`. `fixed` and `schedule` hold
    nothing."""
    kl_coef: FiniteFloat | None = Field(default=None, ge=0, le=MAX_KL_COEF)
    """β, reward per nat: throughout (fixed) or at the start. None: 0.1, but `tilt` goes by σ_r/√(2 target) of the first
    rollout's rewards, and starts with `tilt.loosest` times it."""
    kl_coef_min: FiniteFloat = Field(default=MIN_KL_COEF, ge=MIN_KL_COEF, le=MAX_KL_COEF)
    """Rails of a β that moves by readings."""
    kl_coef_max: FiniteFloat = Field(default=MAX_KL_COEF, ge=MIN_KL_COEF, le=MAX_KL_COEF)
    kl_target: FiniteFloat | None = Field(default=None, ge=1e-15, le=1e6)
    """KL(π‖π_ref) to hold, nats per `kl_unit`."""
    kl_unit: Unit = "response"
    """What `kl_target` is per: nats per `response` or per `token`."""
    kl_at_most: bool = False
    """Hold the upper end of the reading's interval at the target instead of its value: a budget, not a mean."""
    kl_ramp: int = Field(default=0, ge=0, le=10**9)
    """Steps over which the target rises to `kl_target`; 0: it is there from the first."""
    kl_ramp_shape: Literal["linear", "quadratic"] = "linear"
    """`linear`: the same nats every step; `quadratic`: the same way every step, as KL grows with its square."""
    schedule: ScheduleConfig = ScheduleConfig()
    ziegler: ZieglerConfig = ZieglerConfig()
    dual: DualConfig = DualConfig()
    pid: PIDConfig = PIDConfig()
    tilt: TiltConfig = TiltConfig()

    @property
    def start(self) -> float:
        """β before the first reading."""
        if self.kl_coef is None:
            return min(max(0.1, self.kl_coef_min), self.kl_coef_max)
        return self.kl_coef

    def target_at(self, step: int) -> float:
        """The target at step 1, 2, …, nats per `kl_unit`.

        Examples:
            >>> budget = ControlConfig(kl_target=6.0, kl_ramp=500)
            >>> [round(budget.target_at(step), 3) for step in (1, 250, 500, 900)]
            [0.012, 3.0, 6.0, 6.0]
        """
        assert self.kl_target is not None, "a controller with a target is refused without one"
        if step >= self.kl_ramp:
            return self.kl_target
        share = max(step, 1) / self.kl_ramp
        return self.kl_target * (share if self.kl_ramp_shape == "linear" else share * share)

    @model_validator(mode="before")
    @classmethod
    def _name_what_was_renamed(cls, data: Any) -> Any:
        for key, value, now in RENAMED:
            if isinstance(data, dict) and key in data and value in (None, data[key]):  # pyright: ignore[reportUnknownArgumentType]
                raise ValueError(now)
        return data  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if self.kl_coef_min > self.kl_coef_max:
            raise ValueError("kl_coef_min no larger than kl_coef_max: they are the rails of β")
        fields = ControlConfig.model_fields
        for table in ("schedule", "ziegler", "dual", "pid", "tilt"):
            if table != self.controller and getattr(self, table) != fields[table].default:
                raise ValueError(
                    f"no [rl.{table}], which the {self.controller} controller does not read; "
                    f"controller = '{table}' does"
                )
        if self.controller in WITHOUT_TARGET:
            if self.kl_ramp or self.kl_at_most:
                raise ValueError(
                    "no kl_ramp and no kl_at_most: they are a target's, and the "
                    f"{self.controller} controller has none; controller = 'tilt' has"
                )
            return self
        if self.kl_target is None:
            raise ValueError(
                f"kl_target, in nats, for the {self.controller} controller to hold (6.0 is a usual start); "
                "controller = 'fixed' needs none"
            )
        if not self.kl_coef_min <= self.start <= self.kl_coef_max:
            raise ValueError(
                f"kl_coef from {self.kl_coef_min:g} to {self.kl_coef_max:g}, where the {self.controller} controller "
                "may move it; for no penalty controller = 'fixed'"
            )
        return self
