"""What a law of control is asked at one step, and what it answers.

Laws use nothing but + − × ÷ and square roots, which IEEE 754 fixes to the last bit: so a β that was chosen on one
machine is found again on any other. Where a law has a logarithm or an exponential on paper, it has here their first
Padé forms, log r ≈ 2(r − 1)/(r + 1) and exp u ≈ (2 + u)/(2 − u): the same to second order, and the first is bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kleash.control.config import ControlConfig
from kleash.records import Signals


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a law is asked: β for this step's update, given what was read of the policy."""

    config: ControlConfig
    kl_coef: float
    """β of the step before."""
    step: int
    """1-based."""
    signals: Signals
    kl: float
    """What is to be held at the target, nats per `config.kl_unit`; finite."""
    standard_error: float | None
    """Of `kl`."""

    @property
    def target(self) -> float:
        """The target of this step."""
        return self.config.target_at(self.step)

    @property
    def relative_error(self) -> float:
        """KL/target − 1."""
        return self.kl / self.target - 1.0


class Answer(NamedTuple):
    """β, what the law will remember, and what it has to say."""

    kl_coef: float
    memory: Any = None
    note: str = ""


class Law(NamedTuple):
    """How a controller moves β. Its memory is None or a frozen record, of which None is the start."""

    move: Callable[[Question, Any], Answer]
    hold: Callable[[float, Signals, Any], Any] = lambda kl_coef, signals, memory: memory
    """What is remembered of a step whose β was held, as there was nothing to go by."""


def clip(value: float, low: float, high: float) -> float:
    """The nearest to a value that is not outside."""
    return min(max(value, low), high)


def log_ratio(value: float, target: float) -> float:
    """log(value/target) in its Padé form: −2 at value 0, 2 at infinity.

    Examples:
        >>> log_ratio(1.1, 1.0)  # log 1.1 = 0.09531
        0.09523809523809534
    """
    return 2.0 - 4.0 / (value / target + 1.0)


def exponential(exponent: float) -> float:
    """exp of −1 … 1 in its Padé form.

    Examples:
        >>> exponential(0.1)  # 1.10517
        1.105263157894737
    """
    return (2.0 + exponent) / (2.0 - exponent)
