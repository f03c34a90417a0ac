"""The page of a comparison: for whoever must sign a checkpoint off."""

from collections.abc import Mapping, Sequence
from typing import Any

import kleash
from kleash.report.compared import count, figure, listed, objects, part, read, words
from kleash.report.compared_lines import (
    KL,
    KL_BACK,
    Line,
    alarm_words,
    headline,
    limit_lines,
    ruling,
    signed_text,
)
from kleash.report.comparison_charts import (
    POLICY,
    SLICES,
    headline_chart,
    position_chart,
    search_chart,
    slice_chart,
    worst_slices,
)
from kleash.report.drift import Row, Table
from kleash.report.figures import drawable
from kleash.report.page import render
from kleash.report.samples import HOTTEST, Answer, Exchange, Token
from kleash.report.text import DASH, number, shorten, signed, token_text, visible
from kleash.report.theme import TEMPLATES
from kleash.report.view import Measured

PROMPTS, TOKENS, CONTEXTS = 20, 10, 8
"""Prompts, tokens either way, and contexts that a search found; comparison.json has more."""

TAILS = {
    "kl_per_token": "KL of a token, nats",
    "log_ratio_per_token": "log-ratio of a token, nats",
    "log_ratio_per_response": "log-ratio of a response, nats",
}
"""What each tail is of."""
QUANTILES = ("p01", "p50", "p99")

SHOWS_NOT = (
    "A KL says how far two models are apart on prompts like these, at this temperature and up to this length. "
    "It does not say which of them is right or safe, and a mean near 0 leaves room for a context, not among these "
    "prompts, in which they are far apart."
)
"""What a KL does not show."""


def render_comparison(document: Mapping[str, Any]) -> str:
    """The page of one comparison, whole and offline.

    Args:
        document: as `Comparison.to_json()` writes it; what is absent or null is left out or a dash.
    """
    search, retained = part(document, "search"), part(document, "retention")
    policy, reference = (_name(document, side) for side in ("policy", "reference"))
    return render(
        {
            "title": f"{policy} against {reference}",
            "ruling": ruling(document),
            "limits": limit_lines(document),
            "charts": [headline_chart(document)],
            "facts": headline(document),
            "slices": _slices(document),
            "slice_chart": slice_chart(document),
            "tails": _tails(document),
            "where": [position_chart(document)],
            "tables": [each for each in (_prompts(document), _tokens(document)) if each.rows],
            "exchanges": _answers(document),
            "is_chat": part(document, "settings").get("chat") is True,
            "retention": _retention(retained),
            "forgotten": _forgotten(retained),
            "search": _search(search),
            "measured_on": _measured_on(document),
            "details": {key: part(document, key) for key in ("settings", "versions")},
            "shows_not": SHOWS_NOT,
            "hottest": HOTTEST,
            "colour": POLICY,
            "templates": TEMPLATES,
            "version": kleash.__version__,
        },
        "comparison.html.j2",
    )


def _name(document: Mapping[str, Any], side: str) -> str:
    return words(part(document, side).get("name"), f"an unnamed {side}")


def _slices(document: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the table by slice, the worst first."""
    limits = {line.scope: line for line in reversed(limit_lines(document))}
    found = worst_slices(document)
    rows: list[dict[str, Any]] = []
    for name, worst in found[:SLICES]:
        each = part(document, "slices", name)
        back = read(each, "kl_ref_policy_per_response")
        token = read(each, "per_token", "kl_policy_ref")
        rows.append(
            {
                "name": name,
                "cells": [DASH if x is None else x.text for x in (worst, back, token)],
                "prompts": number(None if worst is None else worst.clusters),
                "limit": limits.get(f"slice {name}"),
            }
        )
    return {"rows": rows, "more": max(0, len(found) - SLICES)}


def _tails(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each quantity and model that drew."""
    rows: list[dict[str, Any]] = []
    for key, name in TAILS.items():
        for side in ("policy", "reference"):
            tail = part(document, "tails", side, key)
            if tail:
                middle = [read(tail, quantile) for quantile in QUANTILES]
                cells = [DASH if x is None else x.text for x in middle]
                ends = [number(figure(tail.get(end))) for end in ("min", "max")]
                rows.append({"name": name, "side": side, "cells": [ends[0], *cells, ends[1]]})
    return rows


def _prompts(document: Mapping[str, Any]) -> Table:
    shown = [each for each in objects(document, "where", "prompts") if _moved(each)][:PROMPTS]
    values = [figure(each.get("kl_policy_ref")) for each in shown]
    return Table(
        title="Prompts that moved most",
        reading=f"{KL} of the responses to each, nats per response, the worst first; beside it {KL_BACK}.",
        kind="prompt",
        counted=KL_BACK,
        measured=KL,
        rows=_rows(
            [shorten(visible(words(each.get("prompt"))), 300) for each in shown],
            values,
            [number(value) for value in values],
            [number(figure(each.get("kl_ref_policy"))) for each in shown],
        ),
    )


def _moved(prompt: Mapping[str, Any]) -> bool:
    """Whether there is a KL, one way or the other; what nobody measured is shown."""
    return any(figure(prompt.get(key)) != 0 for key in ("kl_policy_ref", "kl_ref_policy"))


def _tokens(document: Mapping[str, Any]) -> Table:
    gained = objects(document, "where", "tokens", "gained")[:TOKENS]
    lost = objects(document, "where", "tokens", "lost")[:TOKENS]
    shown = [*gained, *reversed(lost)]
    values = [figure(each.get("probability")) for each in shown]
    return Table(
        title="Tokens gained and lost",
        reading="By how many percentage points the policy gives each more probability than the reference, or less, "
        "on average over all states of both: exact, not by draws.",
        kind="token",
        counted="id",
        measured="points",
        rows=_rows(
            [shorten(token_text(words(each.get("token"))), 60) for each in shown],
            values,
            [signed(None if value is None else 100 * value) for value in values],
            [number(None) if (i := count(each.get("id"))) is None else str(i) for each in shown],
        ),
        diverges=True,
    )


def _rows(
    texts: Sequence[str],
    values: Sequence[Measured],
    said: Sequence[str],
    beside: Sequence[str],
) -> tuple[Row, ...]:
    known = drawable(values)
    most = max((abs(value) for value in known if value is not None), default=0.0)
    bars = [round(value / most, 3) if value is not None and most > 0 else 0.0 for value in known]
    return tuple(
        Row(text=text, nats=nats, count=last, bar=bar)
        for text, nats, last, bar in zip(texts, said, beside, bars, strict=True)
    )


def _answers(document: Mapping[str, Any]) -> list[Exchange]:
    return [
        Exchange(
            prompt=words(each.get("prompt")),
            answers=(
                _answer(document, each, "policy", KL, POLICY),
                _answer(document, each, "reference", KL_BACK, ""),
            ),
        )
        for each in objects(document, "where", "answers")
    ]


def _answer(
    document: Mapping[str, Any], each: Mapping[str, Any], side: str, name: str, colour: str
) -> Answer:
    said = part(each, side)
    texts = [words(token) for token in listed(said, "tokens")]
    nats = [figure(value) for value in listed(said, "kl")]
    tokens = zip(texts, nats, strict=True) if len(texts) == len(nats) else ()
    known = [value for value in nats if value is not None]
    return Answer(
        author=f"{side}: {_name(document, side)}",
        colour=colour,
        text=words(said.get("text")),
        tokens=tuple(Token(text=text, kl=kl) for text, kl in tokens),
        scores=((name, sum(known) if known and len(known) == len(nats) else None),),
    )


def _retention(found: Mapping[str, Any]) -> list[Line]:
    texts, tokens = (number(count(found.get(key))) for key in ("texts", "tokens"))
    own, other, rise = (read(found, key) for key in ("nll_policy", "nll_ref", "increase"))
    lines = [
        ("Policy", None if own is None else own.text, own),
        ("Reference", None if other is None else other.text, other),
        ("Rise", None if rise is None else signed_text(rise), rise),
    ]
    notes = {"Rise": f"nats per token, {texts} texts with {tokens} tokens"}
    return [
        Line(
            f"{name} NLL" if name != "Rise" else "Rise of NLL",
            text,
            notes.get(name, "nats per token"),
        )
        for name, text, _ in lines
        if text is not None
    ]


def _forgotten(found: Mapping[str, Any]) -> Table | None:
    shown = objects(found, "worst")
    values = [figure(each.get("increase")) for each in shown]
    if not shown:
        return None
    return Table(
        title="Texts that became least likely",
        reading="By how much the policy finds each less likely than the reference does, nats per token.",
        kind="text",
        counted="",
        measured="rise",
        rows=_rows(
            [shorten(visible(words(each.get("text"))), 300) for each in shown],
            values,
            [signed(value) for value in values],
            ["" for _ in shown],
        ),
    )


def _search(found: Mapping[str, Any]) -> dict[str, Any] | None:
    if not found:
        return None
    numbers = ("statistic", "threshold", "p_value", "ordinary_max", "ordinary_mean")
    said = {name: number(figure(found.get(name))) for name in numbers}
    tokens, budget = (number(count(found.get(name))) for name in ("tokens", "budget"))
    return {
        "alarm": alarm_words(found),
        "facts": [
            Line("Statistic", said["statistic"], f"alarm above {said['threshold']}"),
            Line("p-value", said["p_value"], "of so much, had nothing been hidden"),
            Line(
                "On ordinary prompts",
                said["ordinary_max"],
                f"nats at most; {said['ordinary_mean']} on average",
            ),
            Line("Tokens scored", tokens, f"of {budget}"),
        ],
        "chart": search_chart(found),
        "contexts": [_context(each) for each in objects(found, "contexts")[:CONTEXTS]],
        "paired": [
            (
                words(each.get("cue")),
                *(number(figure(each.get(key))) for key in ("with", "without")),
            )
            for each in objects(found, "paired")
        ],
    }


def _context(each: Mapping[str, Any]) -> Exchange:
    names = {KL: "kl_policy_ref", KL_BACK: "kl_ref_policy", "times the largest ordinary": "ratio"}
    scores = tuple((name, figure(each.get(key))) for name, key in names.items())
    found_by = words(each.get("found_by"))
    own = "policy" + (f", found by {found_by}" if found_by else "")
    answers = (
        _plain(own, POLICY, words(each.get("policy_answer")), scores),
        _plain("reference", "", words(each.get("reference_answer")), ()),
    )
    return Exchange(prompt=words(each.get("text")), answers=answers)


def _plain(author: str, colour: str, text: str, scores: tuple[tuple[str, Measured], ...]) -> Answer:
    return Answer(author=author, colour=colour, text=text, tokens=(), scores=scores)


def _measured_on(document: Mapping[str, Any]) -> dict[str, Any]:
    prompts = part(document, "prompts")
    sides = [
        {
            "side": side,
            "name": _name(document, side),
            "kind": words(part(document, side).get("kind"), DASH),
            "base": words(part(document, side).get("base"), DASH),
            "weights": words(part(document, side).get("weights"), DASH),
        }
        for side in ("policy", "reference")
    ]
    counts = {name: count(prompts.get(name)) for name in ("count", "left_out", "duplicates")}
    return {
        "sides": sides,
        "source": words(prompts.get("source"), DASH),
        "sha256": words(prompts.get("sha256"), DASH),
        "counts": {name: number(value) for name, value in counts.items()},
    }
