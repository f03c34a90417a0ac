"""Models that are fetched: by digest, whole or not at all."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kleash.errors import InputError, ResourceError, TamperError
from kleash.models.fetch import download, fetch
from kleash.models.fetchable import FETCHABLE, fetched
from kleash.models.hub import load_language_model

SMOL = FETCHABLE["smollm2-135m"]


@pytest.fixture(autouse=True)
def _an_empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEASH_HOME", str(tmp_path / "home"))


def packed(tmp_path: Path, content: bytes, member: str = SMOL.member) -> Path:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
    return wheel


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "home").rglob("*.gguf")) + list((tmp_path / "home/models").iterdir())


def test_another_model_in_the_package_is_found_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(TamperError, match="not what it is known to be") as caught:
        fetch(SMOL, packed(tmp_path, b"GGUF and something else"))
    assert caught.value.got == hashlib.sha256(b"GGUF and something else").hexdigest()
    assert left(tmp_path) == []


def test_a_model_file_that_is_none_is_bad_input_and_not_kept(tmp_path: Path) -> None:
    """Its digest is right, so it is read; what is read is no model."""
    content = b"GGUF" + bytes(100)
    named = replace(SMOL, member_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(InputError, match="cannot load 'smollm2-135m'"):
        fetch(named, packed(tmp_path, content))
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["none", "text", "without", "directory"])
def test_a_package_that_cannot_be_read_is_bad_input(kind: str, tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    if kind == "text":
        wheel.write_text("no archive")
    elif kind == "without":
        wheel = packed(tmp_path, b"", "another/member")
    elif kind == "directory":
        wheel.mkdir()
    with pytest.raises(InputError, match="cannot read"):
        fetch(SMOL, wheel)
    assert left(tmp_path) == []


def test_a_download_that_fails_says_how_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ResourceError, match="pip did not download") as caught:
        download(SMOL, tmp_path / "package")
    assert "--wheel" in caught.value.do


def test_a_model_that_was_not_fetched_says_how_to() -> None:
    with pytest.raises(InputError) as caught:
        load_language_model("smollm2-135m")
    assert "kleash models fetch smollm2-135m" in caught.value.do
    with pytest.raises(InputError, match="not on this machine"):
        fetched("smollm2-135m")


@pytest.mark.network
@pytest.mark.slow
def test_the_real_one_is_what_it_is_known_to_be() -> None:
    path = fetch(SMOL)
    model = load_language_model("smollm2-135m")
    assert fetched("smollm2-135m") == str(path)
    assert sum(p.numel() for p in model.model.parameters()) == SMOL.parameters
    assert fetch(SMOL) == path
