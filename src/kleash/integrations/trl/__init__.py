"""TRL under our meter: `kleash sft` and `kleash dpo`, and `KLLeash` for a trainer that you have built yourself.

TRL makes every update. Ours are the exact KL, the β where it has one, the guard's limits, and the record.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kleash.errors import InputError

if TYPE_CHECKING:
    from kleash.integrations.trl.leash import KLLeash
    from kleash.integrations.trl.watch import Watch

__all__ = ["KLLeash", "Watch"]


def __getattr__(name: str) -> Any:
    # Late: whoever reads a configuration of `kleash sft` needs neither TRL nor torch for it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import_module("trl")  # the first to be missed, and cheap
        from kleash.integrations.trl import leash, watch
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"trl", "torch", "transformers", "datasets", "accelerate"}:
            raise
        raise InputError(
            f"{name} is for TRL's trainers, and TRL is an extra",
            expected="the packages of kleash[trl]",
            got=f"no {missing}",
            do="pip install 'kleash[trl]'",
        ) from error
    return {"KLLeash": leash.KLLeash, "Watch": watch.Watch}[name]
