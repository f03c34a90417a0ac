"""`kleash lab NAME` for every study: what it costs, how far it is, what it found, and the files it leaves."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from kleash.cli.console import Screen, Steps, jsonable
from kleash.cli.options import AsJson, lab_extra
from kleash.cli.train import INTERRUPTED, TERMINATED, Terminated, terminable
from kleash.config import build, override, read_toml, resolved
from kleash.errors import InputError
from kleash.lab.catalogue import STUDIES, Study
from kleash.report import write_report
from kleash.report.findings import counted, render_book, render_study
from kleash.report.plot import draw
from kleash.report.text import interval

if TYPE_CHECKING:
    from kleash.lab.study.findings import Findings
    from kleash.lab.study.work import Event, Work

Out = Annotated[
    Path,
    typer.Option(help="Directory. What was finished in it before is taken from there."),
]
StudyConfig = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG.toml]", help="The study's settings; none: the whole study."),
]
StudyOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, as in seeds=3 or setting.steps=20; --settings shows them all.",
    ),
]
Settings = Annotated[
    bool,
    typer.Option(
        "--settings", help="Print every setting as TOML, with the value it has; make nothing."
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="A small version: some minutes on two cores.")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, max=512, help="Pieces of work at once.", show_default="one a core"),
]
DEFAULT_OUT = Path("runs/lab")
BOOK = "What a KL penalty buys, and what it does not"
SIGNS = {
    True: Text("✓", style="green"),
    False: Text("✗", style="red"),
    None: Text("?", style="yellow"),
}
"""Of a claim that holds, one that doesn't, and one that is open."""


class _Plan(NamedTuple):
    """A study about to be made."""

    study: Study
    module: Any
    config: Any
    seconds: float
    """Of one core, about; NaN where that can't be told."""
    command: str


def study_command(study: Study) -> Callable[..., None]:
    """The command of a study."""

    def command(
        config: StudyConfig = None,
        quick: Quick = False,
        overrides: StudyOverrides = None,
        settings: Settings = False,
        out: Out = DEFAULT_OUT,
        jobs: Jobs = None,
        as_json: AsJson = False,
    ) -> None:
        screen = Screen(as_json=as_json)
        plan = _plan(study, config, overrides or (), quick=quick)
        if settings:
            with lab_extra():
                from tomli_w import dumps

            values = resolved(plan.config)
            screen.say(f"# {plan.command}\n{dumps(values)}")
            screen.document({"study": study.name, "command": plan.command, "config": values})
            return
        documents = _make(screen, [plan], out, jobs)
        _show(screen, documents[0])
        page = out / study.name / "report.html"
        write_report(render_study(documents[0]), page)
        screen.say(f"report   {page}")
        screen.document(documents[0])

    command.__doc__ = study.question
    return command


def everything(
    quick: Quick = False, out: Out = DEFAULT_OUT, jobs: Jobs = None, as_json: AsJson = False
) -> None:
    """Every study, in one page with a table of contents."""
    screen = Screen(as_json=as_json)
    plans = [_plan(study, None, (), quick=quick) for study in STUDIES.values()]
    documents = _make(screen, plans, out, jobs)
    for document in documents:
        write_report(render_study(document), out / document["study"] / "report.html")
        screen.say(Text(str(document["title"]), style="bold"))
        _show(screen, document)
        screen.say()
    page = out / "book.html"
    write_report(render_book(documents, BOOK), page)
    screen.say(f"book     {page}")
    screen.document({"book": str(page), "studies": documents})


def _plan(study: Study, path: Path | None, overrides: Sequence[str], *, quick: bool) -> _Plan:
    """A study and its settings: the whole one's, over them those of a quick one, a file's, and single ones."""
    with lab_extra():
        module = import_module(study.module)
    data = _merged(module.QUICK if quick else {}, {} if path is None else read_toml(path))
    sources = [*([str(path)] if path else []), *(["--set"] if overrides else [])]
    source = " with ".join(sources) or "the study's own settings"
    config = build(module.Config, override(data, overrides), source)
    words = [
        "kleash lab",
        study.name,
        *([str(path)] if path else []),
        *(["--quick"] if quick else []),
    ]
    words += [f"--set {assignment}" for assignment in overrides]
    return _Plan(study, module, config, module.cost(config), " ".join(words))


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables over tables, the inner ones too."""
    merged = dict(under)
    for key, value in over.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(inner, value)
        else:
            merged[key] = value
    return merged


def _make(
    screen: Screen, plans: Sequence[_Plan], out: Path, jobs: int | None
) -> list[dict[str, Any]]:
    """Makes the studies one after another, in one directory; each leaves its files when it is done."""
    from kleash.lab.study.cost import told
    from kleash.lab.study.work import Work, cores

    count = jobs or cores()
    for plan in plans:
        _check_out(out / plan.study.name)
        less = "" if math.isnan(plan.seconds) else ", less what is done already"
        screen.note(f"{plan.study.name}: {told(plan.seconds, count)}{less}")
    documents: list[dict[str, Any]] = []
    try:
        with (
            terminable(),
            screen.progress() as bars,
            Work(out, _observer(bars), count).open() as work,
        ):
            for plan in plans:
                bars.show(plan.study.title, 0, 1)
                documents.append(_document(plan, work))
                bars.show(plan.study.title, 1, 1)
                _write(documents[-1], out / plan.study.name)
    except KeyboardInterrupt as stop:
        screen.note("stopped; the same command goes on where it was")
        raise typer.Exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED) from None
    return documents


def _check_out(directory: Path) -> None:
    """That a directory is there or can be made, before there is anything to leave in it."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(
            f"{there} is no directory",
            expected="a directory for the study's files, or the name of a new one",
            got="a file",
            do="name another with --out",
        )


def _observer(bars: Steps) -> "Callable[[Event], None]":
    return lambda event: bars.show(event.label, event.step, event.steps, event.figures)


def _document(plan: _Plan, work: "Work") -> dict[str, Any]:
    """Makes one study. What it says of itself is all that a page is made from."""
    from kleash.lab.study.work import plain
    from kleash.train.run import LIBRARIES, versions

    made, found, started = work.made, work.found, perf_counter()
    findings: Findings = plan.module.run(plan.config, work)
    cost = {
        "core_seconds_expected": None if math.isnan(plan.seconds) else round(plan.seconds),
        "seconds": round(perf_counter() - started, 1),
        "pieces_made": work.made - made,
        "pieces_found": work.found - found,
    }
    return plain(
        {
            "study": plan.study.name,
            "title": plan.study.title,
            "question": plan.study.question,
            "command": plan.command,
            "findings": findings.to_json(),
            "config": resolved(plan.config),
            "versions": versions(LIBRARIES),
            "cost": cost,
        }
    )


def _write(document: Mapping[str, Any], directory: Path) -> None:
    """findings.json, the first table as CSV and Parquet, and the figure."""
    from kleash.lab.study.files import csv, parquet
    from kleash.lab.study.work import unwritable

    table = document["findings"]["tables"][0]
    files = {
        "findings.json": json.dumps(jsonable(document), indent=1, allow_nan=False).encode(),
        "table.csv": csv(table),
        "table.parquet": parquet(table),
        **{f"figure.{kind}": data for kind, data in draw(document["findings"]["figure"]).items()},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (directory / name).write_bytes(data)
    except OSError as error:
        raise unwritable(directory, error) from error


def _show(screen: Screen, document: Mapping[str, Any]) -> None:
    """The answer and its claims."""
    found = document["findings"]
    screen.say(found["answer"])
    screen.say()
    for claim in found["claims"]:
        screen.say(
            SIGNS[claim["holds"]], f"{claim['name']}: {claim['says']} {_rests_on(claim)}".rstrip()
        )
    screen.say()


def _rests_on(claim: Mapping[str, Any]) -> str:
    """The estimate of a claim in brackets."""
    found = claim["estimate"]
    if found is None:
        return ""
    text = interval(found["value"], found["low"], found["high"])
    unit = f" {claim['unit']}" if claim["unit"] else ""
    return f"({text}{unit}, {counted(found)})"
