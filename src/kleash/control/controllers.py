"""The controllers of β: frozen states and pure functions, so that every β can be replayed.

    state = control.init(config)
    state = control.update(state, reading, Signals(num_responses=reading.n))  # once a rollout
    state.kl_coef                                                             # β of the next update

A new controller is a state record, an `init`, an `update` and a line in `CONTROLLERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from kleash.control.config import MAX_KL_COEF, MIN_KL_COEF, ControlConfig
from kleash.errors import ConfigError, InputError
from kleash.records import KLReading, Signals, Unit


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedState:
    """A β that never moves."""

    kl_coef: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger and the checkpoint store it."""
        return {"controller": "fixed", **asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveState:
    """β on its way to a target, with its law's constants: the state alone says how it moves."""

    kl_coef: float
    kl_target: float
    kl_unit: Unit
    kl_horizon: int
    kl_error_clip: float
    note: str = ""
    """What kept the last update from being the plain law; empty when nothing did."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger and the checkpoint store it."""
        return {"controller": "adaptive", **asdict(self)}


State = FixedState | AdaptiveState


class Controller(NamedTuple):
    """Where β starts and how one reading moves it. Both functions are pure."""

    init: Callable[[ControlConfig], State]
    update: Callable[[Any, KLReading, Signals], State]


def _init_fixed(config: ControlConfig) -> FixedState:
    return FixedState(kl_coef=config.kl_coef)


def _update_fixed(state: FixedState, reading: KLReading, signals: Signals) -> FixedState:
    return state


def _init_adaptive(config: ControlConfig) -> AdaptiveState:
    assert config.kl_target is not None, "ControlConfig refuses adaptive without a target"
    return AdaptiveState(
        kl_coef=config.kl_coef,
        kl_target=config.kl_target,
        kl_unit=config.kl_unit,
        kl_horizon=config.kl_horizon,
        kl_error_clip=config.kl_error_clip,
    )


def _update_adaptive(state: AdaptiveState, reading: KLReading, signals: Signals) -> AdaptiveState:
    """β ← β(1 + K e), e = clip(KL/target − 1, ±kl_error_clip), K = responses / kl_horizon.

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, in the form of the released code, whose K
    is n_steps/horizon: 0.0512 at 512 responses and a horizon of 10,000. The paper's constant K_β =
    0.1 is a horizon of ten batches. Around the published law stand three guards, each named in
    `note`: an impossible reading holds β, K stays at most 1 (beyond 1/kl_error_clip the factor
    would turn negative), and β stays on its rails.
    """
    _check_kind(state, reading)
    if not reading.is_possible:
        return replace(state, note="held: the reading is not finite, or negative beyond rounding")
    if signals.num_responses < 1:
        return replace(state, note="held: the reading is of no responses")
    num_responses = min(signals.num_responses, state.kl_horizon)
    error = _clip(reading.value / state.kl_target - 1.0, state.kl_error_clip)
    proposed = state.kl_coef * (1.0 + error * num_responses / state.kl_horizon)
    kl_coef = min(max(proposed, MIN_KL_COEF), MAX_KL_COEF)
    note = ""
    if kl_coef != proposed:
        note = f"kl_coef stopped at its rail of {kl_coef:g}"
    elif num_responses < signals.num_responses:
        note = "gain capped at 1: more responses than kl_horizon"
    return replace(state, kl_coef=kl_coef, note=note)


CONTROLLERS: dict[str, Controller] = {
    "fixed": Controller(_init_fixed, _update_fixed),
    "adaptive": Controller(_init_adaptive, _update_adaptive),
}


def init(config: ControlConfig) -> State:
    """The state before the first rollout.

    Examples:
        >>> init(ControlConfig(controller="fixed", kl_coef=0.05))
        FixedState(kl_coef=0.05)
    """
    return CONTROLLERS[config.controller].init(config)


def update(state: State, reading: KLReading, signals: Signals) -> State:
    """The state after one rollout; call it once a rollout, whatever becomes of the proposed update.

    Args:
        state: from `init` or the previous `update`.
        reading: KL(π‖π_ref) of the policy that sampled the rollout, in the config's `kl_unit`.
        signals: what else was measured.

    Raises:
        ConfigError: the reading has another unit or direction than the target.

    Examples:
        >>> state = init(ControlConfig(kl_coef=0.15, kl_target=6.0))
        >>> reading = KLReading(value=9.0, low=None, high=None, n=512, clusters=512,
        ...                     unit="response", direction="policy_ref", estimator="exact",
        ...                     reference="base")
        >>> update(state, reading, Signals(num_responses=512)).kl_coef  # 0.15 (1 + 0.2 x 0.0512)
        0.151536
    """
    return CONTROLLERS[_name(state)].update(state, reading, signals)


def from_json(data: Mapping[str, Any]) -> State:
    """The state that `to_json` wrote.

    Raises:
        InputError: it is not such a state: a field is missing, unknown, out of range or of the
            wrong type.
    """
    fields = {key: value for key, value in data.items() if key != "note"}
    try:
        state = init(ControlConfig.model_validate(fields))
    except ValidationError as error:
        what = error.errors(include_input=False)[0]["msg"]
        raise InputError("the stored controller state cannot be used", got=what) from error
    if isinstance(state, AdaptiveState):
        state = replace(state, note=str(data.get("note")))
    if state.to_json() != dict(data):
        raise InputError(
            "the stored controller state cannot be used",
            expected=f"the fields {', '.join(state.to_json())}",
            got="missing or unknown fields, or values of another type",
        )
    return state


def _name(state: State) -> str:
    return "fixed" if isinstance(state, FixedState) else "adaptive"


def _check_kind(state: AdaptiveState, reading: KLReading) -> None:
    if (reading.direction, reading.unit) != ("policy_ref", state.kl_unit):
        raise ConfigError(
            "the controller was shown another KL than its target is for",
            expected=f"kl_policy_ref_per_{state.kl_unit}",
            got=reading.name,
            do="give kl_target in the unit that kl_unit names",
        )


def _clip(error: float, bound: float) -> float:
    return min(max(error, -bound), bound)
