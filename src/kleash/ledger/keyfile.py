"""Where the signing key lies: made on first use, readable by its owner alone, and not to be swapped unnoticed."""

import errno
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from kleash.errors import InputError, ResourceError
from kleash.ledger.keys import PublicKey, SigningKey, is_vkey, parse_vkey, refuse_private

KEY_FILE = "signing.key"
MAX_KEY_FILE = 1 << 16
"""Bytes of the longest file that is read as a key."""

_PLAIN = b"-----BEGIN PRIVATE KEY-----"
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def default_key_path() -> Path:
    """`$KLEASH_HOME/signing.key`, else `$XDG_CONFIG_HOME/kleash/signing.key`, else under `~/.config/kleash`.

    Raises:
        InputError: there is no home directory.
    """
    if home := os.environ.get("KLEASH_HOME"):
        return Path(home) / KEY_FILE
    config = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not config.is_absolute():  # the XDG specification: a relative one is ignored
        try:
            config = Path.home() / ".config"
        except RuntimeError as error:
            raise InputError(
                "there is no home directory to keep the signing key in",
                do="set KLEASH_HOME to a directory",
            ) from error
    return config / "kleash" / KEY_FILE


def open_signing_key(path: Path | None = None, *, passphrase: bytes | None = None) -> SigningKey:
    """The signing key at `path`, or at its usual place; made there if there is none yet.

    Two processes that come first at once get the same key. With a passphrase the key is kept encrypted.

    Raises:
        InputError: the file is not a key that its owner alone can read, or not with this passphrase.
        ResourceError: it cannot be written or read.
    """
    path = path or default_key_path()
    if not os.path.lexists(path):
        create_signing_key(SigningKey.generate(), path, passphrase=passphrase)
    return read_signing_key(path, passphrase=passphrase)


def create_signing_key(key: SigningKey, path: Path, *, passphrase: bytes | None = None) -> bool:
    """Keep `key` at `path`, as PKCS #8 in PEM with mode 0600; returns whether it is there, and not one made before it.

    It is written beside its place, synced and then linked to it: at no time is there a part of a key, and one that
    is there is never replaced. A passphrase is stretched only by what PKCS #8 as `cryptography` writes it has, 2048
    rounds of PBKDF2-HMAC-SHA-256: it must be several words long to hold against whoever got the file.

    Raises:
        InputError: the passphrase is empty.
        ResourceError: the file cannot be written.
    """
    if passphrase == b"":
        raise InputError("a key is not encrypted with an empty passphrase")
    scheme = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    data: bytes = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, scheme)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise ResourceError(
            f"the signing key {str(path)!a} cannot be written",
            got=error.strerror or str(error),
            do="check the space and the permissions there, or set KLEASH_HOME to another directory",
        ) from error
    return True


def rewrite_signing_key(key: SigningKey, path: Path, passphrase: bytes | None) -> None:
    """Keep `key` at `path` under another passphrase, in place of the same key as it lay there.

    The new file is whole and synced before it takes the old one's name. The old one's bytes may stay on the disk, and
    in copies of it, until they are written over: a key that was exposed is to be replaced, not encrypted.

    Args:
        key: what lies there.
        path: where.
        passphrase: the new one; None: in the clear.

    Raises:
        InputError: the passphrase is empty.
        ResourceError: the file cannot be written.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    create_signing_key(key, new, passphrase=passphrase)
    try:
        new.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ResourceError(
            f"the signing key {str(path)!a} cannot be replaced", got=error.strerror or str(error)
        ) from error


def read_signing_key(path: Path, *, passphrase: bytes | None = None) -> SigningKey:
    """The signing key in a file.

    Raises:
        InputError: the file is not a key that its owner alone can read, or not with this passphrase.
        ResourceError: it cannot be read.
    """
    where = f"the signing key {str(path)!a}"
    data = _read_private(path)
    if not data.startswith((_PLAIN, _ENCRYPTED)):
        raise InputError(f"{where} is no key", expected="a private key as PKCS #8 in PEM")
    is_encrypted = data.startswith(_ENCRYPTED)
    if is_encrypted and not passphrase:
        raise InputError(f"{where} is encrypted", do="give its passphrase")
    if passphrase is not None and not is_encrypted:
        raise InputError(
            f"{where} is not encrypted, but a passphrase was given",
            do="leave it out, or check that this is the key you mean",
        )
    try:
        private = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        what = "does not open with this passphrase" if is_encrypted else "is damaged"
        raise InputError(f"{where} {what}") from error
    return SigningKey.of(private)


def needs_passphrase(path: Path) -> bool:
    """Whether the key in a file is encrypted, so that whoever runs this can be asked.

    Raises:
        InputError: the file is not a key that its owner alone can read.
        ResourceError: it cannot be read.
    """
    return _read_private(path).startswith(_ENCRYPTED)


def read_public_key(source: str | Path) -> PublicKey:
    """A public key from a vkey, or from a file that holds one in a line of its own.

    A text in the form of a vkey is one, whatever lies in the directory: a file of that name, planted in a run to be
    verified, would else put its own key in the place of the one that was asked for.

    Raises:
        InputError: it is neither.
    """
    if isinstance(source, str) and is_vkey(source.strip()):
        return parse_vkey(source.strip())
    refuse_private(str(source))
    path = Path(source)
    try:
        if not path.is_file():  # to open a pipe would be to wait for whoever writes to it
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            text = file.read(MAX_KEY_FILE).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"no public key can be read from {str(path)!a}",
            expected="a file with a vkey: name+id+base64",
            got=getattr(error, "strerror", None) or "not UTF-8",
        ) from error
    return parse_vkey(text.strip())


def _read_private(path: Path) -> bytes:
    """The bytes of a regular file that belongs to us, is no link, and that no one else may read."""
    where = f"the signing key {str(path)!a}"
    flags = (
        os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    )  # a pipe must not make us wait
    try:
        file = os.open(path, flags)
        try:
            _refuse_unsafe(os.fstat(file), where, path)
            return os.read(file, MAX_KEY_FILE)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(
                f"{where} is a symbolic link", do="put the key itself there"
            ) from error
        raise ResourceError(f"{where} cannot be read", got=error.strerror or str(error)) from error


def _refuse_unsafe(facts: os.stat_result, where: str, path: Path) -> None:
    """What was opened is judged, and not what lay there before."""
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{where} is not a regular file", do="put the key itself there")
    if facts.st_uid != os.geteuid():
        raise InputError(f"{where} belongs to another user, who could change it")
    if facts.st_mode & 0o077:
        raise InputError(
            f"{where} can be read or changed by others",
            expected="mode 0600",
            got=f"mode {stat.S_IMODE(facts.st_mode):04o}",
            do=f"chmod 600 {str(path)!a}; if others may have read it, make a new key",
        )


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
