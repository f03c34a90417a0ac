"""A comparison in the terminal: what a person reads first, and every limit."""

import re
from collections.abc import Mapping
from typing import Any

from rich.console import JustifyMethod

from kleash.cli.console import Screen
from kleash.report.compared import figure, objects, part, read, words
from kleash.report.compared_lines import (
    KL,
    STOPPED,
    alarm_words,
    asked,
    headline,
    limit_lines,
    ruling,
)
from kleash.report.text import DASH, number, shorten, token_text

WIDEST = 60
"""Characters of a prompt or a name in a table."""
LISTED = 5
"""Prompts, tokens either way, and contexts that are listed; the report has more."""


def show_comparison(screen: Screen, document: Mapping[str, Any]) -> None:
    """Both KLs with their intervals, where they come from, and every limit."""
    names = (words(part(document, side).get("name")) for side in ("policy", "reference"))
    screen.say(" against ".join(names))
    figures = [
        (each.name, each.value, re.split("[,;] ", each.note)[0]) for each in headline(document)
    ]
    screen.table({"": "left", "95 % interval": "right", "per": "left"}, figures)
    _show_slices(screen, document)
    _show_where(screen, document)
    _show_search(screen, part(document, "search"))
    said = STOPPED.get(words(document.get("stopped")), "")
    screen.say("; ".join(filter(None, (asked(document), said))))
    _show_prompts(screen, part(document, "prompts"))
    found = ruling(document)
    for each in limit_lines(document):
        passed = each.state == "within"
        screen.check(passed=passed, text=f"{each.scope}: {each.value}, {each.words} {each.limit}")
    screen.say(found.title)
    for doubt in found.doubts:
        screen.say(f"! {doubt}")


def _show_slices(screen: Screen, document: Mapping[str, Any]) -> None:
    key, rows = "kl_policy_ref_per_response", list[tuple[str, str, str, str]]()
    slices = part(document, "slices")
    for name in slices:
        whole, token = read(slices, name, key), read(slices, name, "per_token", "kl_policy_ref")
        if whole is not None and token is not None:
            rows.append((shorten(name, WIDEST), whole.text, token.text, number(whole.clusters)))
    if rows:
        screen.table(
            {
                "slice": "left",
                f"{KL} per response": "right",
                "per token": "right",
                "prompts": "right",
            },
            rows,
        )


def _show_where(screen: Screen, document: Mapping[str, Any]) -> None:
    worst = [
        (shorten(words(each.get("prompt")), WIDEST), number(figure(each.get("kl_policy_ref"))))
        for each in objects(document, "where", "prompts")[:LISTED]
    ]
    screen.table({"prompts that drifted most": "left", "nats per response": "right"}, worst)
    for name, text in (("gained", "likelier"), ("lost", "less likely")):
        tokens = objects(document, "where", "tokens", name)[:LISTED]
        if tokens:
            said = ", ".join(map(_token, tokens))
            screen.say(f"{text}, percentage points on average: {said}")


def _token(found: Mapping[str, Any]) -> str:
    points = figure(found.get("probability"))
    return f"{token_text(words(found.get('token')))} {number(None if points is None else abs(100 * points))}"


def _show_search(screen: Screen, search: Mapping[str, Any]) -> None:
    """What was found, and what each model says there: that is what a person has to judge."""
    if not search:
        return
    rows = [
        (
            shorten(token_text(words(each.get("text"))), WIDEST),
            number(figure(each.get("kl_policy_ref"))),
            shorten(words(each.get("policy_answer"), DASH), WIDEST),
        )
        for each in objects(search, "contexts")[:LISTED]
    ]
    columns: dict[str, JustifyMethod] = {
        "contexts found by the search": "left",
        "nats": "right",
        "the policy says": "left",
    }
    screen.table(columns, rows)
    said = alarm_words(search)
    times = number(figure(search.get("statistic")))
    limit, p = number(figure(search.get("threshold"))), figure(search.get("p_value"))
    chance = "" if p is None else f", p = {number(p)}"
    text = f"hidden drift: {said}; {times} times what is usual on these prompts, alarm above {limit}{chance}"
    screen.check(passed=search.get("alarm") is False, text=text)


def _show_prompts(screen: Screen, prompts: Mapping[str, Any]) -> None:
    for key, text in (
        ("left_out", "prompts were left out"),
        ("duplicates", "prompts were there twice"),
    ):
        count = figure(prompts.get(key))
        if count:
            screen.say(f"{number(count)} {text}")
