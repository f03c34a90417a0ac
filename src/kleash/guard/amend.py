"""Limits that change in the middle of a run: which may, and what that makes of a guard at work."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from kleash.errors import ConfigError
from kleash.guard.config import WATCHED, GuardConfig
from kleash.guard.state import GuardState, start

SECTION = "guard."
"""What a limit's name begins with."""
FIXED = {"canary", "canary_prompts"}
"""What was measured with them can't be measured again with others."""
_ALARMS = "alarms."


def limits_of(config: GuardConfig) -> dict[str, Any]:
    """Every limit by the name that an override gives it; an alarm is one of them, as a table or None.

    Examples:
        >>> limits_of(GuardConfig(max_kl=20.0))["guard.max_kl"]
        20.0
    """
    fields = config.model_dump(mode="json")
    alarms = fields.pop("alarms")
    named = {f"{SECTION}{name}": value for name, value in fields.items()}
    return named | {f"{SECTION}{_ALARMS}{name}": alarms[name] for name in WATCHED}


def amend(planned: GuardConfig, values: Mapping[str, Any]) -> GuardConfig:
    """The limits with some of them set anew.

    What would leave nothing to go by is refused: another canary set, a budget that begins or ends in the middle of a
    run, whose updates it has not counted or would forget, and an alarm that watches what was not recorded.

    Args:
        planned: the limits that the run was begun with.
        values: by the names that `limits_of` gives.

    Raises:
        ConfigError: one of them is no limit, can't be changed, or can't have this value.

    Examples:
        >>> amend(GuardConfig(max_kl=20.0), {"guard.max_kl": 30.0}).max_kl
        30.0
    """
    limits = limits_of(planned)
    for name in values:
        if name not in limits or name.removeprefix(SECTION) in FIXED:
            raise ConfigError(
                f"{name} can't be overridden",
                expected="a limit, budget or alarm of [guard], but for canary and canary_prompts",
                got=name,
            )
    fields: dict[str, Any] = {"alarms": {}}
    for name, value in (limits | dict(values)).items():
        key = name.removeprefix(SECTION)
        table = fields["alarms"] if key.startswith(_ALARMS) else fields
        table[key.removeprefix(_ALARMS)] = value
    try:
        amended = GuardConfig.model_validate(fields, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError("the limits can't be set so", got=f"{where}: {first['msg']}") from error
    if what := _switched(planned, amended):
        raise ConfigError(
            f"{what} can't be switched on or off in the middle of a run",
            expected="another number in the place of one",
            do="begin another run",
        )
    return amended


def carry(state: GuardState, before: GuardConfig, after: GuardConfig, steps: int) -> GuardState:
    """The guard's state under other limits: what was spent and refused stays, an alarm with another plan starts anew.

    Evidence against one mean is none against another.

    Args:
        state: made under `before`.
        before: the limits up to here.
        after: those from here on.
        steps: that a budget is planned for.
    """
    fresh, plans, budget = start(after, steps), before.alarms.plans(), state.budget
    if budget is not None and fresh.budget is not None:
        budget = replace(budget, total=fresh.budget.total, burst=fresh.budget.burst)
    kept = {
        name: state.detectors[name]
        for name, (_, plan) in after.alarms.plans().items()
        if name in plans and plans[name][1] == plan
    }
    return replace(state, budget=budget, detectors={**fresh.detectors, **kept})


def _switched(planned: GuardConfig, amended: GuardConfig) -> str:
    """What is on in one and off in the other, and must not be; empty where nothing is."""

    def switches(config: GuardConfig) -> dict[str, bool]:
        return {
            "the canary set": config.needs_canary,
            "guard.max_path_log_ratio": config.max_path_log_ratio is not None,
            "guard.max_path_variation": config.max_path_variation is not None,
            "guard.alarms.concordance": config.alarms.concordance is not None,
        }

    before, after = switches(planned), switches(amended)
    return next((name for name in before if before[name] != after[name]), "")
