"""Controllers that choose β, the coefficient of the KL penalty, from measured KL. Pure."""

from kleash.control.config import MAX_KL_COEF, MIN_KL_COEF, ControlConfig
from kleash.control.controllers import CONTROLLERS, State, from_json, init, raised, update
from kleash.records import Signals

__all__ = [
    "CONTROLLERS",
    "MAX_KL_COEF",
    "MIN_KL_COEF",
    "ControlConfig",
    "Signals",
    "State",
    "from_json",
    "init",
    "raised",
    "update",
]
