"""What a leash is told of target and limits, as the configurations of controller and guard."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kleash.control import ControlConfig
from kleash.errors import ConfigError
from kleash.guard import GuardConfig
from kleash.integrations.trl.supported import REINFORCED, Method

_ELSEWHERE = (
    "canary",
    "max_kl_canary",
    "max_kl_slice",
    "max_path_log_ratio",
    "max_path_variation",
    "max_mismatch",
    "stop_kl",
)
"""Settings of `[guard]` for which nothing is measured here."""


def controller_of(
    target: float | None, controller: str | ControlConfig | None, beta: float
) -> ControlConfig:
    """The controller of β.

    Args:
        target: nats per response; None: β stays.
        controller: its name, or all of it.
        beta: TRL's, which a fixed controller holds.

    Raises:
        ConfigError: there is no such controller, or it can't be had so.

    Examples:
        >>> controller_of(6.0, None, 0.04).controller, controller_of(None, None, 0.04).kl_coef
        ('tilt', 0.04)
    """
    if isinstance(controller, ControlConfig):
        if target is not None and target != controller.kl_target:
            raise ConfigError(
                "two targets",
                expected="one, as kl_target of the ControlConfig",
                got=f"target = {target}, kl_target = {controller.kl_target}",
            )
        return controller
    name = controller or ("fixed" if target is None else "tilt")
    said: dict[str, Any] = {"controller": name, "kl_target": target}
    if name in ("fixed", "schedule"):
        said["kl_coef"] = beta
    return _made(ControlConfig, said, "the controller")


def limits_of(limits: Mapping[str, Any] | GuardConfig | None, method: Method) -> GuardConfig:
    """The limits. An update that is over one is undone whole, unless the whole guard is given and says otherwise.

    Raises:
        ConfigError: there is no such limit, or nothing here could hold it.

    Examples:
        >>> limits_of({"max_kl": 20.0}, "grpo").on_breach
        'reject'
    """
    if isinstance(limits, GuardConfig):
        guard = limits
    else:
        guard = _made(GuardConfig, {"on_breach": "reject", **(limits or {})}, "the limits")
    fields = GuardConfig.model_fields
    fresh = [name for name in _ELSEWHERE if getattr(guard, name) != fields[name].default]
    if guard.on_breach == "shrink":
        fresh.append("on_breach = 'shrink'")
    if guard.alarms.concordance is not None:
        fresh.append("alarms.concordance")
    if method not in REINFORCED:
        known = ("max_kl", "on_breach")
        fresh += [
            name
            for name, of in fields.items()
            if name not in (*known, *_ELSEWHERE) and getattr(guard, name) != of.default
        ]
    if fresh:
        held = "max_kl" if method not in REINFORCED else "limits of the rollout and its update"
        raise ConfigError(
            "a leash on TRL can't hold all of these limits",
            expected=f"{held}: the rest is not measured under TRL",
            got=", ".join(fresh),
            do="leave them out, or train with kleash train",
        )
    return guard


def _made(kind: Any, said: Mapping[str, Any], what: str) -> Any:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{what} can't be had",
            expected=f"settings of {kind.__name__}",
            got=f"{where}: {first['msg']}" if where else str(first["msg"]),
        ) from error
