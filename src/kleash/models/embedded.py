"""The models that ship with the package, so that everything runs with no hub, no account and no GPU."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedModel:
    """One embedded model: a plain Hugging Face directory inside the package."""

    name: str
    path: str
    kind: str
    parameters: int
    description: str

    def to_json(self) -> dict[str, str | int]:
        """A plain dict."""
        return asdict(self)


_KINDS = {
    "tiny-reviews/base": ("policy", "a language model of film-review sentences"),
    "tiny-reviews/gold": ("reward model", "a classifier of sentiment; score > 0 is praise"),
}


def resolve(name: str) -> str:
    """The directory of an embedded model or file; any other name unchanged.

    Examples:
        >>> resolve("some-org/some-model")
        'some-org/some-model'
    """
    if name in _KINDS:
        return str(ASSETS / name)
    return str(ASSETS / f"{name}.txt") if name == "tiny-reviews/prompts" else name


def names() -> list[str]:
    """The embedded models' names, for messages that offer a near one.

    Examples:
        >>> names()
        ['tiny-reviews/base', 'tiny-reviews/gold']
    """
    return sorted(_KINDS)


def list_models() -> list[EmbeddedModel]:
    """Every embedded model, with its size read from its weights' header."""
    return [
        EmbeddedModel(
            name=name,
            path=resolve(name),
            kind=kind,
            parameters=count_in_file(Path(resolve(name)) / "model.safetensors"),
            description=description,
        )
        for name, (kind, description) in _KINDS.items()
    ]


def count_in_file(weights: Path) -> int:
    """Elements of all tensors in a safetensors file: its JSON header says so, no tensor is read."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return sum(_product(shape) for shape in shapes)


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
