"""The `[rl]` section: which controller sets β, from what start, to what target."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from kleash.records import Unit

MIN_KL_COEF = 1e-9
MAX_KL_COEF = 1e9
"""The rails of an adaptive β, far outside any useful value: it neither dies at 0 nor overflows."""


class ControlConfig(BaseModel):
    """How β, the coefficient of the KL penalty, is chosen.

    Examples:
        >>> ControlConfig(kl_target=4.0).kl_coef
        0.1
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    controller: Literal["fixed", "adaptive"] = "adaptive"
    """`fixed` keeps `kl_coef`; `adaptive` moves it towards `kl_target` (Ziegler et al. 2019)."""
    kl_coef: FiniteFloat = Field(default=0.1, ge=0)
    """β, reward per nat: the value throughout (fixed) or at the start (adaptive)."""
    kl_target: FiniteFloat | None = Field(default=None, gt=0)
    """KL(π‖π_ref) to hold, nats per `kl_unit`. `adaptive` needs it; `fixed` does not act on it."""
    kl_unit: Unit = "response"
    """What `kl_target` is per: nats per `response` or per `token`."""
    kl_horizon: int = Field(default=10_000, gt=0, le=10**12)
    """Episodes: one update moves β by error × responses / kl_horizon, so longer is slower."""
    kl_error_clip: FiniteFloat = Field(default=0.2, gt=0, lt=1)
    """Largest relative error |KL/target − 1| that one update acts on."""

    @model_validator(mode="after")
    def _adaptive_can_move(self) -> Self:
        if self.controller != "adaptive":
            return self
        if self.kl_target is None:
            raise ValueError(
                "the adaptive controller needs kl_target, in nats; "
                "set kl_target (4.0 is a usual start) or controller = 'fixed'"
            )
        if not MIN_KL_COEF <= self.kl_coef <= MAX_KL_COEF:
            raise ValueError(
                "the adaptive controller multiplies kl_coef, so it cannot start at "
                f"{self.kl_coef:g}: expected {MIN_KL_COEF:g} to {MAX_KL_COEF:g}; "
                "for no penalty set controller = 'fixed'"
            )
        return self
