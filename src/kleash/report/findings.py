"""What studies found, from their JSON documents to a page: one study, or the whole book with its contents."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kleash
from kleash.report.compared import count, listed, objects, part, read, words
from kleash.report.page import render
from kleash.report.plot import draw
from kleash.report.text import DASH, number

VERDICTS = {True: ("good", "holds"), False: ("bad", "does not hold"), None: ("", "open")}
"""Of a claim: the badge's colour and its word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimLine:
    """One claim as the page has it."""

    name: str
    says: str
    colour: str
    verdict: str
    value: str
    """The estimate with its interval; a dash where it rests on none."""
    note: str
    """What the interval is, and of how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLines:
    """One table as the page has it; every cell is text."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """One study as the page has it."""

    name: str
    title: str
    question: str
    answer: str
    claims: tuple[ClaimLine, ...]
    tables: tuple[TableLines, ...]
    picture: str
    """The figure as a data URI."""
    caption: str
    limits: tuple[str, ...]
    command: str
    settings: Mapping[str, Any]


def render_study(document: Mapping[str, Any]) -> str:
    """The page of one study, by its `findings.json`."""
    chapter = chapter_of(document)
    return _page(chapter.title, (chapter,))


def render_book(documents: Sequence[Mapping[str, Any]], title: str) -> str:
    """All studies in one page, with a table of contents."""
    return _page(title, [chapter_of(document) for document in documents])


def chapter_of(document: Mapping[str, Any]) -> Chapter:
    """A study's document as the page shows it."""
    figure = part(document, "findings", "figure")
    svg = draw(figure, ["svg"])["svg"]
    return Chapter(
        name=words(document.get("study")),
        title=words(document.get("title"), "A study"),
        question=words(document.get("question")),
        answer=words(part(document, "findings").get("answer")),
        claims=tuple(map(_claim, objects(document, "findings", "claims"))),
        tables=tuple(map(_table, objects(document, "findings", "tables"))),
        picture="data:image/svg+xml;base64," + base64.b64encode(svg).decode(),
        caption=words(figure.get("caption")),
        limits=tuple(words(text) for text in listed(document, "findings", "limits")),
        command=words(document.get("command")),
        settings={name: part(document, name) for name in ("config", "versions", "cost")},
    )


def _page(title: str, chapters: Sequence[Chapter]) -> str:
    context = {
        "title": title,
        "chapters": chapters,
        "version": kleash.__version__,
    }
    return render(context, "findings.html.j2", moves=False)


def _claim(claim: Mapping[str, Any]) -> ClaimLine:
    holds = claim.get("holds")
    colour, verdict = VERDICTS[holds if isinstance(holds, bool) else None]
    found = read(claim, "estimate")
    told = DASH if found is None else " ".join(filter(None, (found.text, words(claim.get("unit")))))
    return ClaimLine(
        name=words(claim.get("name")),
        says=words(claim.get("says")),
        colour=colour,
        verdict=verdict,
        value=told,
        note="" if found is None else _of(found.confidence, part(claim, "estimate")),
    )


def _of(confidence: str, estimate: Mapping[str, Any]) -> str:
    """What an interval is, and of how many of what.

    Examples:
        >>> _of("95 % interval", {"n": 5, "of": "seeds"})
        '95 % interval, 5 seeds'
    """
    return ", ".join(filter(None, (confidence, counted(estimate))))


def counted(estimate: Mapping[str, Any]) -> str:
    """How many of what an estimate rests on; empty where it doesn't say.

    Examples:
        >>> counted({"n": 1, "of": "seeds"}), counted({"n": 1200, "of": "steps"})
        ('1 seed', '1,200 steps')
    """
    n, what = count(estimate.get("n")), words(estimate.get("of"))
    return "" if n is None else f"{n:,} {what.removesuffix('s') if n == 1 else what}"


def _table(table: Mapping[str, Any]) -> TableLines:
    return TableLines(
        title=words(table.get("title")),
        note=words(table.get("note")),
        columns=tuple(words(name) for name in listed(table, "columns")),
        rows=tuple(
            tuple(map(_cell, row)) for row in listed(table, "rows") if isinstance(row, list)
        ),
    )


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(float(value)) if is_number else DASH
