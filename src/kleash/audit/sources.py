"""What a name given to a comparison leads to: a model, an adapter, a GGUF file, or what a run of kleash left."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kleash.errors import InputError
from kleash.ledger import has_ledger
from kleash.models.adapters import base_of, is_adapter
from kleash.models.loading import directory_of, locate, readable

Kind = Literal["model", "adapter", "gguf", "run"]
SECTIONS = ("model", "data", "rollout")
"""Of a run's configuration, what says how its policy is asked."""
FINAL = "final"
"""Where a run keeps the model that it ended with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One side of a comparison, before it is loaded."""

    name: str
    """As it was given."""
    load: str
    """What is loaded: a directory, a file, or a hub id."""
    kind: Kind
    base: str | None = None
    """What an adapter is a difference from."""
    settings: Mapping[str, Any] | None = None
    """The resolved configuration of a run."""

    @property
    def files(self) -> Path | None:
        """Where its files are, that an attestation has the digests of; None: not on this machine yet."""
        return Path(self.load) if self.kind == "gguf" else directory_of(self.load)

    @property
    def own_reference(self) -> str | None:
        """What it is compared with where nothing else is named; None: nothing is known.

        Raises:
            InputError: it is a blend of models, which is no model.
        """
        if self.settings is None:
            return self.base
        model = self.settings["model"]
        reference = model.get("reference") or model.get("policy")
        if isinstance(reference, Mapping):
            raise InputError(
                f"the reference of the run {self.name} is a blend of {len(reference)} models",
                expected="one model to compare with",
                got=", ".join(map(str, reference)),
                do="name one of them as REFERENCE",
            )
        return None if reference is None else str(reference)


def find(name: str) -> Source:
    """What a name leads to.

    Raises:
        InputError: nothing, or a run that has left no model.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return Source(name=name, load=str(path), kind="gguf")
    if is_run(path):
        return _of_run(name, path)
    with readable(name, "language model"):
        directory = Path(locate(name))
        base = base_of(directory) if is_adapter(directory) else None
    return Source(name=name, load=name, kind="model" if base is None else "adapter", base=base)


def is_run(path: Path) -> bool:
    """Whether a directory is one that `kleash train` wrote."""
    return path.is_dir() and has_ledger(path / "ledger")


def _of_run(name: str, path: Path) -> Source:
    final = path / FINAL
    if not final.is_dir():
        raise InputError(
            f"the run {name} has left no model",
            expected=f"a directory {final}",
            got="nothing: it is not over, or it was killed",
            do="kleash train --resume ends it; or name the policy of one of its checkpoints",
        )
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))["config"]
        settings = {name: dict(config.get(name) or {}) for name in SECTIONS}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"the configuration of the run {name} cannot be read",
            expected="config.json, as kleash writes it",
            got=f"{type(error).__name__}: {error}",
            do=f"name {final} itself, and a REFERENCE",
        ) from error
    base = base_of(final) if is_adapter(final) else None
    return Source(name=name, load=str(final), kind="run", base=base, settings=settings)
