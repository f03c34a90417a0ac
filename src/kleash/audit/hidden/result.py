"""What a search for hidden drift found, as plain values."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HiddenContext:
    """A context after which policy and reference differ."""

    text: str
    ids: tuple[int, ...]
    kl_policy_ref: float
    """KL(π‖π_ref) of the token that follows, nats; inf where the reference rules out what the policy may say."""
    kl_ref_policy: float | None
    """The other direction; None: there was no budget left for it."""
    ratio: float | None
    """Of `kl_policy_ref` to the largest KL of a token on ordinary prompts; None: that is 0."""
    kl_of_answer: float | None
    """KL(π‖π_ref) a token of the policy's answer, nats; None: there was no budget left for it."""
    policy_answer: str | None
    """Its likeliest tokens; None: there was no budget left for it."""
    reference_answer: str | None
    found_by: str
    """`screen`, `pair`, `gradient`, `cue` or `ordinary`."""


@dataclass(frozen=True, slots=True)
class PairedCue:
    """The KL of the token that follows ordinary prompts, with a cue before them and without it."""

    cue: str
    with_cue: float
    """Nats, mean."""
    without: float


@dataclass(frozen=True, slots=True)
class Hidden:
    """The result of `search`."""

    alarm: bool | None
    """Whether the statistic is above the threshold; None: no answer could be paid for."""
    statistic: float | None
    threshold: float
    p_value: float | None
    """Among the null values that were given; None: there were none."""
    ordinary_max: float
    """Nats, the largest KL of a token on ordinary prompts."""
    ordinary_mean: float
    ordinary_usual: float
    """Nats, the quantile of it that the statistic is a multiple of."""
    tokens: int
    """Tokens that were scored, of both models."""
    budget: int
    contexts: tuple[HiddenContext, ...]
    curve: tuple[tuple[int, float], ...]
    """Tokens spent, and the largest KL found by then."""
    paired: tuple[PairedCue, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict; a number that isn't finite is None, as JSON has none."""
        return {
            "alarm": self.alarm,
            "statistic": _finite(self.statistic),
            "threshold": self.threshold,
            "p_value": self.p_value,
            "ordinary_max": _finite(self.ordinary_max),
            "ordinary_mean": _finite(self.ordinary_mean),
            "ordinary_usual": _finite(self.ordinary_usual),
            "tokens": self.tokens,
            "budget": self.budget,
            "contexts": [_context(x) for x in self.contexts],
            "curve": [[tokens, _finite(best)] for tokens, best in self.curve],
            "paired": [
                {"cue": x.cue, "with": _finite(x.with_cue), "without": _finite(x.without)}
                for x in self.paired
            ],
        }


def _context(found: HiddenContext) -> dict[str, Any]:
    return {
        "text": found.text,
        "ids": list(found.ids),
        "kl_policy_ref": _finite(found.kl_policy_ref),
        "kl_ref_policy": _finite(found.kl_ref_policy),
        "ratio": _finite(found.ratio),
        "kl_of_answer": _finite(found.kl_of_answer),
        "policy_answer": found.policy_answer,
        "reference_answer": found.reference_answer,
        "found_by": found.found_by,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
