"""The controllers of β: a frozen state and pure functions, so that every β can be replayed.

    state = control.init(config)
    state = control.update(state, reading, signals)   # once a rollout, before its update
    state.kl_coef                                     # β of that update

A new controller is a law (`control.law`) and a line in `CONTROLLERS`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from kleash.control.config import WITHOUT_TARGET, ControlConfig
from kleash.control.law import Answer, Law, Question
from kleash.control.pid import PIDMemory, pid
from kleash.control.published import dual, fixed, ppo, schedule, ziegler
from kleash.control.tilt import OLDEST, TiltMemory, tilt, tilt_hold
from kleash.errors import ConfigError, InputError
from kleash.records import KLReading, Signals

Z95 = 1.959963984540054
"""Standard errors between the middle and an end of a 95 % interval."""

CONTROLLERS: dict[str, Law] = {
    "fixed": Law(fixed),
    "schedule": Law(schedule),
    "ziegler": Law(ziegler),
    "ppo": Law(ppo),
    "dual": Law(dual),
    "pid": Law(pid),
    "tilt": Law(tilt, tilt_hold),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A controller between two steps."""

    config: ControlConfig
    kl_coef: float
    """β of the last step's update; before the first step, of none."""
    step: int = 0
    """Steps made."""
    note: str = ""
    """What the controller has to say of the step: why β was held, what can't be had. Empty when nothing."""
    memory: PIDMemory | TiltMemory | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger and the checkpoint store it: all but the configuration, which they have."""
        memory = None if self.memory is None else asdict(self.memory)
        return {
            "controller": self.config.controller,
            "kl_coef": self.kl_coef,
            "step": self.step,
            "note": self.note,
            "memory": _listed(memory),
        }


def init(config: ControlConfig) -> State:
    """The state before the first rollout.

    Examples:
        >>> init(ControlConfig(controller="fixed", kl_coef=0.05)).kl_coef
        0.05
    """
    return State(config=config, kl_coef=config.start)


def update(state: State, reading: KLReading, signals: Signals) -> State:
    """The state that has chosen β for one rollout's update; call it once a rollout, before the update.

    A reading that can't be one (not finite, negative beyond rounding, of no responses) holds β, and `note` says so. β
    stays between `kl_coef_min` and `kl_coef_max` where the controller has a target.

    Args:
        state: from `init` or the previous `update`.
        reading: KL(π‖π_ref) of the policy that sampled the rollout, in the config's `kl_unit`.
        signals: what else was measured of it.

    Raises:
        ConfigError: the reading has another unit or direction than the target.

    Examples:
        >>> state = init(ControlConfig(controller="ziegler", kl_coef=0.15, kl_target=6.0))
        >>> reading = KLReading(value=9.0, low=None, high=None, n=512, clusters=512,
        ...                     unit="response", direction="policy_ref", estimator="exact",
        ...                     reference="base")
        >>> update(state, reading, Signals(num_responses=512)).kl_coef  # 0.15 (1 + 0.2 x 0.0512)
        0.151536
    """
    config, law, step = state.config, CONTROLLERS[state.config.controller], state.step + 1
    targeted = config.controller not in WITHOUT_TARGET
    if targeted:
        _check_kind(config, reading)
    kl = reading.high if config.kl_at_most and reading.high is not None else reading.value
    if targeted and (why := _unusable(reading, kl, signals)):
        memory = law.hold(state.kl_coef, signals, state.memory)
        return replace(state, step=step, note=f"held: {why}", memory=memory)
    question = Question(
        config=config,
        kl_coef=state.kl_coef,
        step=step,
        signals=signals,
        kl=kl,
        standard_error=_standard_error(reading),
    )
    answer = law.move(question, state.memory)
    if not targeted:
        return replace(state, kl_coef=answer.kl_coef, step=step)
    if config.kl_at_most and reading.high is None:
        said = "the reading has no interval, so that its mean is held, not its upper end"
        answer = answer._replace(note="; ".join(filter(None, (answer.note, said))))
    return _on_rails(state, answer, step)


def raised(state: State, factor: float) -> State:
    """The state with β multiplied, as far as its rail: what is asked for when a run goes back, or an alarm rings.

    Controllers with a target go on from there; a schedule has its own mind.

    Examples:
        >>> raised(init(ControlConfig(controller="fixed", kl_coef=0.05)), 2.0).kl_coef
        0.1
    """
    config = state.config
    most = config.kl_coef_max if config.controller not in WITHOUT_TARGET else float("inf")
    kl_coef = min(state.kl_coef * factor, max(most, state.kl_coef))
    return replace(state, kl_coef=kl_coef) if isfinite(kl_coef) else state


def from_json(data: Mapping[str, Any], config: ControlConfig) -> State:
    """The state that `to_json` wrote, under the configuration that it was made with.

    Raises:
        InputError: it is not such a state: a field is missing, unknown, of the wrong type or not finite, or it is of
            another controller.
    """
    try:
        stored, adapter = _Stored.model_validate(data), _MEMORIES.get(config.controller)
        memory = None
        if adapter is not None and stored.memory is not None:
            memory = adapter.validate_python(stored.memory)
        state = State(
            config=config,
            kl_coef=stored.kl_coef,
            step=stored.step,
            note=stored.note,
            memory=memory,
        )
        # As text: in Python True is 1 and 1 is 1.0.
        if _text(state.to_json()) == _text(data):
            return state
        got = "a state of another controller, or values of another type"
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(ascii(part).strip("'") for part in first["loc"])
        got = f"{where}: {first['msg']}"
    raise InputError(
        "the stored controller state cannot be used",
        expected=f"a state of the {config.controller} controller",
        got=got,
    )


def _on_rails(state: State, answer: Answer, step: int) -> State:
    """The state with the answer's β, stopped at the rails."""
    config = state.config
    kl_coef, note = answer.kl_coef, answer.note
    if not isfinite(kl_coef):
        return replace(state, step=step, note="held: the controller's own numbers overflowed")
    low, high = config.kl_coef_min, config.kl_coef_max
    if not low <= kl_coef <= high:
        kl_coef = min(max(kl_coef, low), high)
        note = "; ".join(filter(None, (note, f"kl_coef stopped at its rail of {kl_coef:g}")))
    return replace(state, kl_coef=kl_coef, step=step, note=note, memory=answer.memory)


def _unusable(reading: KLReading, kl: float, signals: Signals) -> str:
    """Why nothing can be gone by; empty where something can."""
    if not (reading.is_possible and isfinite(kl)):
        return "the reading is not finite, or negative beyond rounding"
    if signals.num_responses < 1:
        return "the reading is of no responses"
    if not 0.0 <= signals.momentum < 1.0:
        return f"a momentum of {signals.momentum:g} is not 0 to 1"
    if not 0 <= signals.age <= OLDEST:
        return f"the reading's age of {signals.age} updates is not 0 to {OLDEST}"
    return ""


def _check_kind(config: ControlConfig, reading: KLReading) -> None:
    if (reading.direction, reading.unit) != ("policy_ref", config.kl_unit):
        raise ConfigError(
            "the controller was shown another KL than its target is for",
            expected=f"kl_policy_ref_per_{config.kl_unit}",
            got=reading.name,
            do="give kl_target in the unit that kl_unit names",
        )


def _standard_error(reading: KLReading) -> float | None:
    """Half the interval, as if of 95 %; None where there is none."""
    if reading.low is None or reading.high is None:
        return None
    return (reading.high - reading.low) / (2.0 * Z95)


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(dict(data), sort_keys=True)


def _listed(value: Any) -> Any:
    """With lists for tuples, as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return [_listed(item) for item in value] if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownVariableType]


class _Stored(BaseModel):
    """A state as `to_json` writes it."""

    model_config = ConfigDict(extra="forbid")

    controller: str
    kl_coef: FiniteFloat = Field(ge=0)
    step: int = Field(ge=0)
    note: str
    memory: dict[str, Any] | None


_MEMORIES: dict[str, TypeAdapter[Any]] = {
    "pid": TypeAdapter(PIDMemory),
    "tilt": TypeAdapter(TiltMemory),
}
