"""The limits of a run step by step: those it was begun with, and what a second key changed of them since."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kleash.errors import ConfigError, InputError, KleashError, TamperError
from kleash.guard import GuardConfig, amend, limits_of
from kleash.ledger import (
    OVERRIDE,
    Chain,
    Change,
    Entry,
    Ledger,
    OverrideEntry,
    Problem,
    PublicKey,
    Signer,
    encode,
    parse_vkey,
    sign_override,
    steps_made,
    wrong_override,
)
from kleash.replay.sequence import problem_at


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits, step by step.

    Examples:
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
    steps = 0
    for entry in entries:
        steps += entry.type == "update"
        if entry.type != OVERRIDE:
            continue
        try:
            if not (what := wrong(entry)):
                override = OverrideEntry.from_json(entry.body)
                what = wrong_change(planned, overrides, override)
                if override.step != steps:
                    what = f"the override does not count the {steps} updates before it"
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


def override(
    directory: Path,
    signers: Iterable[Signer],
    second: Signer,
    amended: Callable[[GuardConfig], GuardConfig],
    *,
    reason: str,
    until: int | None = None,
) -> OverrideEntry:
    """Enters other limits for a run that stands still; it goes on with them.

    Args:
        directory: its ledger.
        signers: those that it was begun with.
        second: the key that vouches for it, none of those.
        amended: of the limits in force, those that are wanted.
        reason: why.
        until: the last step under them; None: all that follow.

    Raises:
        InputError: there is nothing to override, or not so.
        TamperError: the ledger is not as it was written; ResourceError: another process writes it.
    """
    ledger, chain = Ledger.open(directory, signers)
    with ledger:
        kinds = [entry.type for entry in chain.entries]
        if "plan.committed" not in kinds or "run.finished" in kinds:
            raise InputError(
                "there is no plan here that a run goes on with",
                expected="a run of kleash train that began, and has not finished",
                got=f"{kinds[-1]} is its last entry" if kinds else "no entry",
            )
        earlier, wrong = check_overrides(chain)
        if wrong:
            raise TamperError("the plan was overridden as it may not be", got=str(wrong[0]))
        planned = GuardConfig.model_validate(chain.entries[0].body["config"]["guard"])
        step = steps_made(chain.entries)
        limits = Plan(planned, tuple(earlier)).at(step + 1)
        before, after = limits_of(limits), limits_of(amended(limits))
        entry = OverrideEntry(
            origin=chain.origin,
            seq=ledger.head.size,
            prev=ledger.head.leaf,
            step=step,
            until=until,
            changes={
                n: Change(old=before[n], new=after[n]) for n in after if after[n] != before[n]
            },
            reason=reason,
            key="",
        )
        signed = sign_override(entry, second, chain.keys)
        if what := wrong_change(planned, earlier, signed):
            raise ConfigError(f"the plan can't be overridden so: {what}")
        ledger.append(OVERRIDE, signed.to_json())
    return signed
