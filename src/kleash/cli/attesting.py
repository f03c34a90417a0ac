"""`kleash compare --attest`: the digests of both models' files, and the signed attestation of what was measured."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleash.audit.attestation import FileDigest, attest, list_files
from kleash.cli.console import Screen
from kleash.cli.options import passphrase, signing_key
from kleash.errors import ConfigError, InputError, TamperError
from kleash.ledger import SigningKey, read_signing_key

if TYPE_CHECKING:
    from kleash.audit.config import CompareConfig
    from kleash.audit.sources import Source

Files = Mapping[str, tuple[FileDigest, ...]]
"""By role: `policy`, `reference`, and the `base` of an adapter."""
USUAL = "default"
"""Stands for the key that signs ledgers."""


class Attesting:
    """An attestation on its way: the key is opened and files are read before anything is measured.

    Args:
        screen: where a passphrase is asked for.
        key: where the signing key is, or `default`.
        passphrase_fd: where its passphrase is read from; None: it is asked for.

    Raises:
        InputError: there is no such key, or it can't be opened.
    """

    def __init__(self, screen: Screen, key: str, passphrase_fd: int | None) -> None:
        self.key = _key(screen, key, passphrase_fd)
        self.sources: tuple[Source, Source] | None = None
        self.files: Files = {}

    def begin(self, config: "CompareConfig") -> None:
        """Reads the files of both models.

        Raises:
            InputError: they are not on this machine.
        """
        from kleash.audit.compare import sources

        self.sources = sources(config)
        self.files = _files(*self.sources)

    def end(self, document: Mapping[str, Any]) -> bytes:
        """The attestation of what was measured.

        Raises:
            TamperError: a file changed meanwhile.
        """
        assert self.sources is not None
        if _files(*self.sources) != self.files:
            raise TamperError(
                "a model's files changed while it was measured",
                expected="the files that were there when it was loaded",
                got="others",
                do="compare again, when nothing writes to them",
            )
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return attest(document, self.files, self.key, time)


def _key(screen: Screen, key: str, passphrase_fd: int | None) -> SigningKey:
    """The key at a path, which has to be there; the usual one is made where there is none, as for a ledger."""
    if key == USUAL:
        return signing_key(screen, passphrase_fd)
    path = Path(key).expanduser()
    if not path.exists():
        raise InputError(
            f"there is no signing key {str(path)!a}",
            expected="a key that kleash ledger key made, or `default`",
            got="nothing",
            do=f"kleash ledger key --file {path} makes one",
        )
    return read_signing_key(path, passphrase=passphrase(screen, passphrase_fd, path))


def _files(policy: "Source", reference: "Source") -> Files:
    bases = [side.base for side in (policy, reference) if side.base is not None]
    if len(set(bases)) > 1:
        raise ConfigError(
            "two adapters of two bases can't be attested",
            expected="one base",
            got=", ".join(bases),
            do="merge one of them into its base with peft's merge_and_unload",
        )
    found = {"policy": _listed(policy), "reference": _listed(reference)}
    if bases:
        from kleash.audit.sources import find

        found["base"] = _listed(find(bases[0]))
    return found


def _listed(source: "Source") -> tuple[FileDigest, ...]:
    if source.files is None:
        raise InputError(
            f"the files of {source.name} are not on this machine, so that they can't be attested",
            expected="a directory, or a hub id that was downloaded",
            got=source.load,
            do="download it first",
        )
    return tuple(list_files(source.files))
