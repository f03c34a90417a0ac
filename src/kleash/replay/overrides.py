"""The limits of a run step by step: those it was begun with, and what a second key changed of them since."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kleash.errors import KleashError
from kleash.guard import GuardConfig, amend, limits_of
from kleash.ledger import (
    OVERRIDE,
    Chain,
    Entry,
    OverrideEntry,
    Problem,
    PublicKey,
    encode,
    parse_vkey,
    wrong_override,
)
from kleash.replay.sequence import problem_at


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits, step by step.

    Examples:
        >>> from kleash.ledger import Change
        >>> change = {"guard.max_kl": Change(old=20.0, new=30.0)}
        >>> override = OverrideEntry(
        ...     origin="", seq=9, prev="", step=3, until=5, changes=change, reason="", key=""
        ... )
        >>> plan = Plan(GuardConfig(max_kl=20.0), (override,))
        >>> [plan.at(step).max_kl for step in (3, 4, 5, 6)]
        [20.0, 30.0, 30.0, 20.0]
    """

    planned: GuardConfig
    """As the run was begun."""
    overrides: tuple[OverrideEntry, ...] = ()
    """In their order; a later one counts for more."""

    def at(self, step: int) -> GuardConfig:
        """Those that an update is under.

        Raises:
            ConfigError: the limits can't be set so.
        """
        held = [each.values for each in self.overrides if each.holds_at(step)]
        values = {name: value for each in held for name, value in each.items()}
        return amend(self.planned, values) if values else self.planned

    def changes_after(self, step: int) -> bool:
        """Whether the plan was overridden right after an update."""
        return any(each.step == step for each in self.overrides)


def overrides_of(
    entries: Sequence[Entry], planned: GuardConfig, wrong: Callable[[Entry], str] = lambda _: ""
) -> tuple[list[OverrideEntry], list[Problem]]:
    """The overrides that hold, in their order, and what is wrong with others.

    Args:
        entries: of a ledger.
        planned: the limits that it began with.
        wrong: what else there is against an entry, empty where nothing is.
    """
    overrides: list[OverrideEntry] = []
    problems: list[Problem] = []
    for entry in entries:
        if entry.type != OVERRIDE:
            continue
        try:
            if not (what := wrong(entry)):
                override = OverrideEntry.from_json(entry.body)
                what = wrong_change(planned, overrides, override)
                overrides += [] if what else [override]
        except KleashError as error:
            what = str(error)
        problems += [problem_at(entry, what)] if what else []
    return overrides, problems


def wrong_change(
    planned: GuardConfig, earlier: Sequence[OverrideEntry], override: OverrideEntry
) -> str:
    """What speaks against an override after others, by its limits alone; empty where nothing does."""
    begins = override.step + 1
    before = limits_of(Plan(planned, tuple(earlier)).at(begins))
    for name, change in override.changes.items():
        if name in before and encode(before[name]) != encode(change.old):
            return f"{name} is not what it was: {before[name]}, and not {change.old}"
    overrides = (*earlier, override)
    # Wherever another set of them holds from, one that runs out among them.
    ends = {each.until + 1 for each in overrides if each.until is not None}
    try:
        for step in sorted({begins, *(end for end in ends if end > begins)}):
            Plan(planned, overrides).at(step)
    except KleashError as error:
        return str(error)
    return ""


def check_overrides(
    chain: Chain, trusted: Iterable[PublicKey] | None = None
) -> tuple[list[OverrideEntry], list[Problem]]:
    """The overrides of a ledger that hold, and what is wrong with others.

    Args:
        chain: the ledger, its signatures checked.
        trusted: whose second keys are taken; None: anybody's.
    """
    try:
        planned = GuardConfig.model_validate(chain.entries[0].body["config"]["guard"])
    except (LookupError, TypeError, ValueError):  # which replay says
        return [], []
    taken = None if trusted is None else {(key.kind, key.raw) for key in trusted}

    def wrong(entry: Entry) -> str:
        what = wrong_override(entry, chain.origin, chain.keys)
        if what or taken is None:
            return what
        key = parse_vkey(entry.body["key"])
        return (
            "" if (key.kind, key.raw) in taken else f"overridden by a key not trusted: {key.vkey}"
        )

    return overrides_of(chain.entries, planned, wrong)
