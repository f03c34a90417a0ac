"""The house rules, read off the source: who may import whom, how large a piece may be, what is never done."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "kleash"
FILES = sorted(SOURCE.rglob("*.py"))

LEVELS = {
    0: {"errors", "records"},
    1: {"functional", "control", "guard", "ledger", "extras"},
    2: {"models", "drift", "replay", "rewards", "rollout"},
    3: {"train", "audit"},
    4: {"lab", "report", "integrations"},
    5: {"config"},
    6: {"cli", "api"},
}
LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}
SAME_LEVEL = {("rewards", "models"), ("rollout", "models")}
"""Rewards and rollout run models, so these two may look sideways."""
NO_TORCH = ("errors", "records", "control", "guard", "ledger", "replay", "report")
TRANSFORMERS = {"models", "integrations"}
"""The only rooms that know transformers: when its interface moves, they move. `models` for all of kleash;
`integrations` because TRL's trainers are transformers' own, and tell what they do to a callback of its kind."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CLASS_DEPTH = 2
MAX_PACKAGE_BYTES = 24 * 2**20
"""Weights of at most 20 MB, and the rest."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every imported module with its line, also inside functions; `from kleash import x` is `kleash.x`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            if module == "kleash":
                yield from ((node.lineno, f"kleash.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def called(node: ast.Call) -> str:
    """What is called, as written: `torch.load`, `print`."""
    return ast.unparse(node.func)


def found(problems: list[str]) -> str:
    return "\n".join(["", *problems])


def test_every_room_has_its_level() -> None:
    rooms = {room(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= LEVEL.keys(), f"no level for {sorted(rooms - LEVEL.keys())}"


def test_imports_point_down() -> None:
    problems: list[str] = []
    for path in FILES:
        here = room(path)
        for line, module in imports(path):
            if not module.startswith("kleash."):
                continue
            there = module.split(".")[1]
            allowed = (
                there in {here, "__version__"}
                or (here, there) in SAME_LEVEL
                or (there in LEVEL and LEVEL[there] < LEVEL.get(here, max(LEVELS) + 1))
            )
            if not allowed:
                problems.append(f"{path.relative_to(ROOT)}:{line}: {here} may not import {there}")
    assert not problems, found(problems)


def test_an_auditors_laptop_needs_no_torch() -> None:
    present = [name for name in NO_TORCH if any(room(path) == name for path in FILES)]
    names = ", ".join(
        f"kleash.{name}" for name in [*present, "audit.attestation", "api", "cli.main"]
    )
    script = (
        f"import sys, kleash, {names}\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy'} & sys.modules.keys()\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_transformers_stays_in_its_room() -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{line}: imports {module}"
        for path in FILES
        if room(path) not in TRANSFORMERS
        for line, module in imports(path)
        if module.split(".")[0] in {"transformers", "peft"}
    ]
    assert not problems, found(problems)


def test_nothing_unsafe_is_called_and_nothing_prints() -> None:
    banned = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "os.system"}
    problems: list[str] = []
    for path in FILES:
        where = path.relative_to(ROOT)
        problems += [
            f"{where}:{line}: imports pickle"
            for line, module in imports(path)
            if module.split(".")[0] in {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
        ]
        for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
            name = called(call)
            if name in banned:
                problems.append(f"{where}:{call.lineno}: calls {name}")
            if name in {"print", "rich.print"} and path != SOURCE / "cli" / "console.py":
                problems.append(f"{where}:{call.lineno}: prints")
            problems += [
                f"{where}:{call.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"
                for keyword in call.keywords
                if (keyword.arg, ast.unparse(keyword.value))
                in {("trust_remote_code", "True"), ("weights_only", "False"), ("shell", "True")}
            ]
    assert not problems, found(problems)


def test_files_and_functions_stay_small() -> None:
    problems: list[str] = []
    for path in FILES:
        where = path.relative_to(ROOT)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            problems.append(f"{where}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    problems.append(f"{where}:{node.lineno}: {node.name} has {length} lines")
    assert not problems, found(problems)


def test_no_drawer_for_everything() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in FILES if path.stem in names or path.parent.name in names]


def test_classes_are_shallow() -> None:
    """At most one base each; apart from the error tree, no class of ours is more than one below a base not ours."""
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for path in FILES
        if room(path) != "errors"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    }

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in bases[name] if base in bases), default=0)

    assert not [name for name in bases if depth(name) > MAX_CLASS_DEPTH]
    assert not [name for name, parents in bases.items() if len(parents) > 1]


def test_the_package_stays_small_enough_to_ship() -> None:
    size = sum(path.stat().st_size for path in SOURCE.rglob("*") if path.is_file())
    assert size <= MAX_PACKAGE_BYTES


def committed() -> list[Path]:
    """Files of the project: what git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of one machine", r"(?<![\w.])/(work|root|tmp|home)/\w"),
        ("a package index", r"pypi\.org|files\.pythonhosted|registry\.npmjs|download\.pytorch"),
    ],
)
def test_nothing_committed_names_a_machine(what: str, pattern: str) -> None:
    problems: list[str] = []
    for path in committed():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # weights and pictures
            continue
        if path == Path(__file__) or path.suffix == ".html":
            continue
        problems += [
            f"{path.relative_to(ROOT)}:{number}: {what}"
            for number, line in enumerate(lines, 1)
            if re.search(pattern, line)
        ]
    assert not problems, found(problems[:20])
