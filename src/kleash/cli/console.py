"""The only place that prints: progress, tables, errors, and the one JSON document of `--json`.

Whatever comes from a model, a file or the outside passes through `plain`: a terminal takes orders from text.
"""

import json
import math
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from getpass import getpass
from typing import Any

from rich.console import Console, Group, JustifyMethod
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from kleash.errors import InputError, KleashError
from kleash.report.text import DASH, visible

LEASH = 0.2
"""How far from its target, relatively, a KL still counts as held."""
_LINES = 10
"""Lines of progress where there is no terminal to draw a bar on."""
_PASSPHRASE = 4096
"""Bytes of the longest passphrase."""


def plain(value: object) -> str:
    r"""Text that a terminal only shows: control, invisible and text-reversing characters are made visible.

    Examples:
        >>> plain("a\x1b]0;title\x07b\u202e")
        'a␛]0;title␇b⟨U+202E⟩'
    """
    return visible(str(value))


def line(value: object) -> str:
    r"""`plain` text on one line.

    Examples:
        >>> line("one\n\ttwo")
        'one⏎ two'
    """
    return plain(value).replace("\n", "⏎").replace("\t", " ")


def jsonable(value: Any) -> Any:
    """The value as JSON can carry it: a float that is no number becomes "nan", "inf" or "-inf".

    Examples:
        >>> jsonable({"kl": float("inf"), "steps": (1, 2)})
        {'kl': 'inf', 'steps': [1, 2]}
    """
    if hasattr(value, "_asdict"):  # a named tuple is a record, not a list
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def kl_text(
    value: float | None, low: float | None, high: float | None, target: float | None
) -> Text:
    """A KL against its target, in nats: green within ±20 % of it, yellow outside, uncoloured without one.

    Examples:
        >>> kl_text(4.1, 3.8, 4.4, 4.0).plain
        '4.10 [3.80, 4.40] / 4 nats'
        >>> kl_text(9.0, None, None, 4.0).style
        'yellow'
    """
    text = fixed(value)
    if low is not None and high is not None:
        text += f" [{fixed(low)}, {fixed(high)}]"
    if target is None or value is None:
        return Text(f"{text} nats")
    held = abs(value / target - 1) <= LEASH
    return Text(f"{text} / {target:g} nats", style="green" if held else "yellow")


def fixed(value: float | None) -> str:
    """A number whose width does not jump about in a line that is drawn again and again.

    Examples:
        >>> fixed(0.1), fixed(None)
        ('0.10', '–')
    """
    return DASH if value is None else f"{value:.2f}"


class Screen:
    """Where a command writes: results to stdout, progress and errors to stderr.

    Args:
        as_json: stdout carries one JSON document and nothing else.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False)

    def document(self, value: Mapping[str, Any]) -> None:
        """The JSON document, where that was asked for."""
        if self.as_json:
            print(json.dumps(jsonable(value), indent=2, allow_nan=False))

    def say(self, *parts: str | Text) -> None:
        """A line of the result, for a person; nothing under `--json`."""
        if not self.as_json:
            shown = [part if isinstance(part, Text) else Text(plain(part)) for part in parts]
            self._out.print(*shown)

    def note(self, text: str) -> None:
        """A line beside the result, on stderr."""
        self._err.print(Text(plain(text), style="dim"), soft_wrap=True)

    def check(self, *, passed: bool, text: str) -> None:
        """One line with a tick or a cross."""
        tick = Text("✓", style="green") if passed else Text("✗", style="bold red")
        self.say(tick, line(text))

    def table(self, columns: Mapping[str, JustifyMethod], rows: Sequence[Sequence[str]]) -> None:
        """A table with these columns: "left" for words, "right" for numbers."""
        if self.as_json:
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name, justify in columns.items():
            table.add_column(name, justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(Text(line(cell)) for cell in row))
        self._out.print(table)

    def ask_passphrase(self, what: str, fd: int | None = None) -> bytes:
        """A passphrase: a line from a file descriptor where one is given, else what is typed, unseen.

        Raises:
            InputError: there is no terminal to type it at, or nothing can be read, or it is empty.
        """
        if fd is None and not sys.stdin.isatty():
            raise InputError(
                "the signing key needs a passphrase, and there is no terminal to ask at",
                do="give it with --passphrase-fd N, as in `--passphrase-fd 3 3< file`",
            )
        try:
            given = getpass(f"{what}: ").encode() if fd is None else _line_of(fd)
        except (OSError, EOFError, OverflowError, UnicodeError) as error:
            raise InputError("the passphrase cannot be read", got=str(error)) from error
        if not given:
            raise InputError("the passphrase is empty")
        return given

    def error(self, error: KleashError) -> None:
        """What went wrong, what was expected, what was got, what to do: one screen, on stderr."""
        parts = (("expected", error.expected), ("got", error.got), ("do", error.do))
        grid = Table.grid(padding=(0, 2))
        for label, text in parts:
            if text:
                grid.add_row(Text(label, style="bold"), Text(_screenful(text)))
        what = Text(_screenful(error.what), style="bold red")
        body = Group(what, Text(), grid) if grid.rows else what
        self._err.print(Panel(body, title="error", title_align="left", border_style="red"))
        if self.as_json:
            said = {"what": error.what, **dict(parts)}
            self.document({"error": said, "exit_code": error.exit_code})

    @contextmanager
    def progress(self) -> Generator["Steps"]:
        """A bar for each piece of work; where stderr is no terminal, a line now and then."""
        bars = Progress(
            _Field("label"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Field("figures"),
            TimeRemainingColumn(compact=True),
            console=self._err,
            disable=not self._err.is_terminal,
        )
        with bars:
            yield Steps(bars, self._err)


class _Field(ProgressColumn):
    """A task's field as it is: rich's own text column would read markup in it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def render(self, task: Task) -> Text:
        return task.fields[self._name]


class Steps:
    """How far each piece of work has come; made by `Screen.progress`."""

    def __init__(self, bars: Progress, err: Console) -> None:
        self._bars = bars
        self._err = err
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, int] = {}

    def show(self, label: str, step: int, steps: int, figures: Text | str = "") -> None:
        """Moves the bar of one piece of work, or makes it.

        Args:
            label: what is being done: one bar each.
            step: steps done.
            steps: how many there will be.
            figures: what a person watches.
        """
        figures = figures if isinstance(figures, Text) else Text(line(figures))
        if self._bars.disable:
            # Steps may come many at a time: a line is due when the next tenth is reached.
            tenth = step // max(1, steps // _LINES)
            if step == steps or tenth > self._said.get(label, -1 if step == 0 else 0):
                self._said[label] = tenth
                words = Text(f"{line(label)} {step}/{steps} ")
                self._err.print(words.append_text(figures), soft_wrap=True)
            return
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(
                "", total=steps, label=Text(line(label)), figures=figures
            )
        self._bars.update(self._tasks[label], completed=step, figures=figures, refresh=True)


def _line_of(fd: int) -> bytes:
    """The next line that a file descriptor gives, without its end; what follows is left to who asks next."""
    given = b""
    while not given.endswith(b"\n") and len(given) < _PASSPHRASE and (more := os.read(fd, 1)):
        given += more
    return given.removesuffix(b"\n").removesuffix(b"\r")


def _screenful(text: str, lines: int = 10, width: int = 160) -> str:
    """Text cut so that the error stays on one screen."""
    kept = [part if len(part) <= width else part[:width] + "…" for part in text.split("\n")]
    more = len(kept) - lines
    return plain("\n".join(kept[:lines] + ([f"… and {more} more"] if more > 0 else [])))
