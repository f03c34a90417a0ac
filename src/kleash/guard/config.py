"""The `[guard]` section: limits that hold whatever β is."""

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class GuardConfig(BaseModel):
    """Hard limits on drift. An update that is not a number is refused under every configuration.

    Examples:
        >>> GuardConfig(max_kl=20.0).max_kl
        20.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_kl: FiniteFloat | None = Field(default=None, gt=0)
    """KL(π‖π_ref) in nats per response above which training halts; None: no limit."""
    max_kl_new_old: FiniteFloat | None = Field(default=None, gt=0)
    """KL(new‖old) in nats per token above which an update is rejected; None: no limit."""
