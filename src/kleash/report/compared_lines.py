"""A comparison in lines of text: the verdict, the figures, the limits. Terminal, page and model card say the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from kleash.report.compared import Read, count, figure, objects, part, read, words
from kleash.report.text import DASH, interval, number, shorten, signed
from kleash.report.view import Measured

KL = "KL(π‖π_ref)"
"""On the policy's own responses."""
KL_BACK = "KL(π_ref‖π)"
"""On the reference's."""

STOPPED = {
    "samples": "one round, as asked",
    "precision": "the interval is as narrow as was asked",
    "max_tokens": "the budget of tokens is spent",
    "prompts": "these prompts differ too much among themselves for so narrow an interval: add prompts",
}
"""Why no further round was begun."""

ALARM = "the search for hidden drift raised its alarm: read what the policy says in the contexts that it found"

NAMED = 3
"""Limits that a verdict names."""


class Line(NamedTuple):
    """One figure."""

    name: str
    value: str
    note: str
    """Unit, interval, and what it means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """What became of the limits."""

    state: Literal["passed", "failed", "none"]
    title: str
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]
    """What speaks against resting on it, a sentence each: intervals that may be too narrow, a search's alarm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitLine:
    """One limit beside what was measured."""

    scope: str
    value: str
    limit: str
    """With its unit."""
    state: Literal["within", "above", "open"]
    """`open`: the interval lies on both sides of it, or there is none."""
    share: Measured
    """Of the limit that the upper end comes to, at most 1; None where there is none."""

    @property
    def words(self) -> str:
        """The state as a person would say it."""
        return {"within": "within", "above": "above", "open": "may be above"}[self.state]


def headline(document: Mapping[str, Any]) -> list[Line]:
    """The figures of a comparison, in the order in which a person asks for them; what is not there is left out.

    No text of the document is in them, so that nothing in them needs escaping.
    """
    found = [
        _kl(KL, read(document, "kl_policy_ref_per_response"), "response"),
        _kl(KL_BACK, read(document, "kl_ref_policy_per_response"), "response"),
        _kl(KL, read(document, "per_token", "kl_policy_ref"), "token"),
        _kl(KL_BACK, read(document, "per_token", "kl_ref_policy"), "token"),
        _js(read(document, "js_per_response")),
        _line("JS of next tokens", read(document, "per_token", "js"), "nats, at most log 2 = 0.69"),
        *_pairs(document),
        _responses(document),
        _retained(document),
        _searched(document),
    ]
    return [line for line in found if line is not None]


def ruling(document: Mapping[str, Any]) -> Ruling:
    """Whether every limit holds. It passed only if verdict and limits both say so in as many words."""
    verdict, limits = part(document, "verdict"), objects(document, "limits")
    lines, doubts = limit_lines(document), _doubts(document)
    if not limits and verdict.get("passed") is None:
        return Ruling(state="none", title="No limit was set", reasons=(), doubts=doubts)
    passed = verdict.get("passed") is True and all(each.get("passed") is True for each in limits)
    if limits and passed:
        title = "Within its limit" if len(limits) == 1 else f"Within its {len(limits)} limits"
        said = ("The upper end of the interval lies at or below it.",)
        every = ("The upper end of every interval lies at or below its limit.",)
        reasons = said if len(limits) == 1 else every
        return Ruling(state="passed", title=title, reasons=reasons, doubts=doubts)
    over = [line for line in lines if line.state == "above"]
    which = over or [line for line in lines if line.state == "open"]
    said = "Above" if over else "May be above"
    reasons = [words(each.get("reason")) for each in limits if each.get("passed") is not True]
    return Ruling(
        state="failed",
        title=f"{said} its limit{'' if len(which) == 1 else 's'}: {_named(which)}"
        if which
        else "Not shown to be within its limits",
        reasons=tuple(filter(None, reasons)),
        doubts=doubts,
    )


def limit_lines(document: Mapping[str, Any]) -> list[LimitLine]:
    """Every limit, those that do not hold first."""
    lines = [_limit(each) for each in objects(document, "limits")]
    return sorted(lines, key=lambda line: ("above", "open", "within").index(line.state))


def told_apart(js: float) -> tuple[float, float]:
    """How often the best guess from one answer which of two models gave it is right: at least and at most.

    Of a Jensen-Shannon divergence J in bits, it errs at most (1 − J)/2 of the time, and by Fano's inequality at least
    as often as gives a coin the entropy 1 − J.

    Args:
        js: nats per response.

    Examples:
        >>> [round(share, 3) for share in told_apart(math.log(2) / 2)]
        [0.75, 0.89]
        >>> told_apart(0.0), told_apart(math.log(2))
        ((0.5, 0.5), (1.0, 1.0))
    """
    unknown = 1 - min(1.0, max(0.0, js / math.log(2)))
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _bits(middle) >= unknown else (middle, high)
    return 1 - unknown / 2, 1.0 if unknown == 0 else 1 - high


def scope_words(scope: str) -> str:
    """What a limit is on."""
    return "all prompts" if scope == "all" else f"slice {scope}"


def asked(document: Mapping[str, Any]) -> str:
    """How much was sampled.

    Examples:
        >>> asked({"kl_policy_ref_per_response": {"value": 1.0, "n": 8, "clusters": 4}, "tokens": 64})
        '8 responses of each model to 4 prompts, 64 tokens'
    """
    found = read(document, "kl_policy_ref_per_response")
    tokens = count(document.get("tokens"))
    if found is None or found.n is None:
        return ""
    said = f"{number(found.n)} responses of each model to {number(found.clusters)} prompts"
    return said + ("" if tokens is None else f", {number(tokens)} tokens")


def _bits(p: float) -> float:
    """Entropy of a coin."""
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def _line(name: str, found: Read | None, unit: str, *more: str) -> Line | None:
    if found is None:
        return None
    return Line(name, found.text, "; ".join(filter(None, (_comma(unit, found), *more))))


def _comma(unit: str, found: Read) -> str:
    return ", ".join(filter(None, (unit, found.confidence)))


def _kl(name: str, found: Read | None, unit: str) -> Line | None:
    return _line(
        name if unit == "response" else f"{name} per {unit}",
        found,
        f"nats per {unit}",
        "" if found is None else found.doubt,
    )


def _js(found: Read | None) -> Line | None:
    means = ""
    if found is not None and found.value is not None and math.isfinite(found.value):
        low, high = (f"{100 * share:.0f}" for share in told_apart(found.value))
        often = low if low == high else f"{low} to {high}"
        means = f"the best guess from one answer which model gave it is right {often} % of the time; chance is 50 %"
    return _line("JS of whole responses", found, "nats, at most log 2 = 0.69", means)


def _pairs(document: Mapping[str, Any]) -> list[Line | None]:
    token, length = part(document, "per_token"), part(document, "response_length")
    own = "nats per token, on its own responses"
    return [
        _line("Entropy of the policy", read(token, "entropy_policy"), own),
        _line("Entropy of the reference", read(token, "entropy_ref"), own),
        _line("Length of the policy's responses", read(length, "policy"), "tokens"),
        _line("Length of the reference's", read(length, "reference"), "tokens"),
    ]


def _responses(document: Mapping[str, Any]) -> Line | None:
    found = read(document, "kl_policy_ref_per_response")
    if found is None or found.n is None:
        return None
    rest = asked(document).partition(" of each model ")[2]
    stopped = STOPPED.get(words(document.get("stopped")), "")
    return Line(
        "Responses", f"{number(found.n)} of each model", "; ".join(filter(None, (rest, stopped)))
    )


def _retained(document: Mapping[str, Any]) -> Line | None:
    rise = read(document, "retention", "increase")
    if rise is None:
        return None
    texts = count(part(document, "retention").get("texts"))
    value = signed(rise.value) if rise.low is None or rise.high is None else signed_text(rise)
    return Line("Rise of NLL on held-out texts", value, f"nats per token, {number(texts)} texts")


def signed_text(found: Read) -> str:
    """A figure that may go either way, with its interval."""
    ends = (
        ""
        if found.low is None or found.high is None
        else f" [{signed(found.low)}, {signed(found.high)}]"
    )
    return signed(found.value) + ends


def _searched(document: Mapping[str, Any]) -> Line | None:
    found = part(document, "search")
    if not found:
        return None
    p = figure(found.get("p_value"))
    note = f"{number(count(found.get('tokens')))} tokens scored" + (
        "" if p is None else f"; p = {number(p)}"
    )
    return Line("Search for hidden drift", alarm_words(found), note)


def alarm_words(search: Mapping[str, Any]) -> str:
    """What a search said."""
    alarm = search.get("alarm")
    return "alarm" if alarm is True else "no alarm" if alarm is False else DASH


def _limit(found: Mapping[str, Any]) -> LimitLine:
    low, high, limit = (figure(found.get(name)) for name in ("low", "high", "limit"))
    value = figure(found.get("value"))
    state: Literal["within", "above", "open"] = "open"
    if found.get("passed") is True:
        state = "within"
    elif low is not None and limit is not None and low > limit:
        state = "above"
    return LimitLine(
        scope=scope_words(words(found.get("scope"), DASH)),
        value=interval(value, low, high),
        limit=f"{number(limit)} nats per {'token' if found.get('unit') == 'token' else 'response'}",
        state=state,
        share=min(1.0, high / limit)
        if high is not None and math.isfinite(high) and limit
        else None,
    )


def _doubts(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the whole and of every slice that has a limit; and that a search found what no limit sees."""
    limited = {words(each.get("scope")) for each in objects(document, "limits")}
    slices = part(document, "slices")
    key = "kl_policy_ref_per_response"
    found = [("all", read(document, key))]
    found += [(name, read(slices, name, key)) for name in slices if name in limited]
    doubts = tuple(
        f"{scope_words(scope)}: {each.doubt}"
        for scope, each in found
        if each is not None and each.doubt
    )
    if part(document, "search").get("alarm") is True:
        doubts += (ALARM,)
    return doubts


def _named(lines: Sequence[LimitLine]) -> str:
    shown = [shorten(line.scope, 60) for line in lines[:NAMED]]
    more = len(lines) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
