"""What the self-test says: its checks as records, for the ledger and for the error that stops a run."""

from dataclasses import asdict, dataclass
from typing import Any

from kleash.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    value: float
    """What was found."""
    limit: float | None
    """What passes; None where any value does: the KL at step 0 of a policy that is not the reference, for one."""
    unit: str
    passed: bool
    wrong: str = ""
    """What it means when it fails."""
    do: str = ""

    @property
    def expected(self) -> str:
        """What would have passed."""
        return "a possible KL" if self.limit is None else f"at most {self.limit:.3g} {self.unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTest:
    """All of them."""

    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """As config.json and the ledger's first entry have it."""
        names = ("name", "value", "limit", "unit", "passed")
        return {"checks": [{name: asdict(c)[name] for name in names} for c in self.checks]}

    def raise_if_failed(self) -> None:
        """Stops the run where a check failed.

        Raises:
            ConfigError: with the first check that failed; it names the others.
        """
        failed = [check for check in self.checks if not check.passed]
        if not failed:
            return
        first, *others = failed
        more = f"; {', '.join(c.name for c in others)} failed too" if others else ""
        raise ConfigError(
            f"the self-test failed: {first.wrong}",
            expected=f"{first.name}: {first.expected}",
            got=f"{first.value:.3g} {first.unit}{more}",
            do=f"{first.do}; --skip-self-test trains all the same, and the ledger says so",
        )
