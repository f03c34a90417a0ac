"""kleash: reinforcement learning from human feedback on a measured leash.

for record in kleash.run("config.toml", run="runs/first"): ...
kleash.verify("runs/first"), kleash.read_run("runs/first"), kleash.compare("runs/first")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kleash.api import Run, compare, read_run, run, verify

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "compare", "read_run", "run", "verify"]


def __getattr__(name: str) -> Any:
    """What kleash offers, brought in as it is asked for: `import kleash` alone takes no time."""
    if name not in __all__:
        raise AttributeError(f"module 'kleash' has no attribute {name!r}")
    from kleash import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
