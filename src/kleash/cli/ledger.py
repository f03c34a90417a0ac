"""`kleash ledger`: the key that signs, one entry's proof, and a record to read or to archive. No torch."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import JustifyMethod

from kleash.cli.console import Screen
from kleash.cli.options import AsJson, PassphraseFd, signing_key
from kleash.errors import InputError, ResourceError, TamperError
from kleash.ledger import (
    HEAD_NOTE,
    PROOF_SUFFIX,
    Chain,
    Entry,
    SigningKey,
    check_proof,
    default_key_path,
    encode,
    has_ledger,
    kept_notes,
    needs_passphrase,
    prove,
    read_public_key,
    rewrite_signing_key,
    verify_chain,
)
from kleash.report.text import number, shorten

MAX_READ = 1 << 21
"""Bytes of the longest proof or entry that is read: more than the longest there can be."""
COLUMNS: dict[str, JustifyMethod] = {
    "seq": "right",
    "time": "left",
    "type": "left",
    "step": "right",
    "action": "left",
    "what": "left",
}

ledger = typer.Typer(help="The record: its key, its entries, their proofs.", no_args_is_help=True)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a ledger.")]


@ledger.command(epilog="Example: kleash ledger key --encrypt")
def key(
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Ask for a passphrase, and keep the key under it.")
    ] = False,
    change: Annotated[
        bool, typer.Option("--change-passphrase", help="Ask for the old one, then a new one.")
    ] = False,
    decrypt: Annotated[
        bool, typer.Option("--decrypt", help="Keep the key in the clear from now on.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(help="A key elsewhere, as the second of an override.", show_default="yours"),
    ] = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Show the key that signs your ledgers, which is made if there is none yet.

    What others need to check them is the vkey: publish it where they trust you. Where a passphrase is changed,
    --passphrase-fd gives the old one and then the new one, a line each.
    """
    screen, path = Screen(as_json=as_json), file or default_key_path()
    if encrypt + change + decrypt > 1:
        raise InputError("a key is encrypted, decrypted, or given another passphrase: one of them")
    if encrypt + change + decrypt:
        held = _rewritten(
            screen, path, passphrase_fd, is_encrypted=not encrypt, ends_so=not decrypt
        )
    else:
        held = signing_key(screen, passphrase_fd, path)
    is_encrypted = needs_passphrase(path)
    screen.say(f"file   {path}{', encrypted' if is_encrypted else ''}")
    screen.say(f"name   {held.public.name}")
    screen.say(f"vkey   {held.public.vkey}")
    screen.document(
        {
            "path": str(path),
            "name": held.public.name,
            "vkey": held.public.vkey,
            "encrypted": is_encrypted,
        }
    )


def _rewritten(
    screen: Screen, path: Path, passphrase_fd: int | None, *, is_encrypted: bool, ends_so: bool
) -> SigningKey:
    """The key at a path, once it is kept there under a new passphrase, or none.

    Args:
        screen: to ask at.
        path: of the key.
        passphrase_fd: where passphrases come from, instead.
        is_encrypted: whether it has to be so now.
        ends_so: whether it is to be so.
    """
    if path.exists() and needs_passphrase(path) != is_encrypted:
        state = "not encrypted" if is_encrypted else "encrypted already"
        raise InputError(f"the signing key {str(path)!a} is {state}")
    held = signing_key(screen, passphrase_fd if is_encrypted else None, path)
    new = _new_passphrase(screen, passphrase_fd) if ends_so else None
    rewrite_signing_key(held, path, new)
    return held


@ledger.command("prove", epilog="Example: kleash ledger prove runs/tiny_ppo 3 > entry.json")
def prove_entry(
    run: Run,
    seq: Annotated[int, typer.Argument(metavar="SEQ", help="The entry's seq.", min=0)],
    out: Annotated[
        Path | None, typer.Option(help="The proof.", show_default=f"SEQ{PROOF_SUFFIX}")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the proof that one entry is in a signed ledger, for somebody who has nothing else of it.

    The entry's own line goes to stdout: hand over both. kleash ledger check takes them.
    """
    screen, directory = Screen(as_json=as_json), locate(run)
    chain = intact(directory)
    if not chain.keys:
        raise InputError("nobody signed this ledger: it is of version 1")
    note = dict(kept_notes(directory))[HEAD_NOTE]
    target = out or Path(f"{seq}{PROOF_SUFFIX}")
    proof = prove([bytes.fromhex(entry.leaf) for entry in chain.entries], seq, note)
    _write(target, proof)
    line = chain.entries[seq].line.decode("ascii")
    screen.note(f"proof  {target}")
    screen.say(line)
    screen.document({"proof": str(target), "seq": seq, "entry": line, "size": chain.signed})


@ledger.command(epilog="Example: kleash ledger check 3.tlog-proof --entry entry.json --key VKEY")
def check(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="What prove wrote.")],
    entry: Annotated[str, typer.Option(metavar="FILE", help="The entry's line; - for stdin.")],
    key: Annotated[str, typer.Option(metavar="PUB", help="The signer's vkey, or a file with it.")],
    as_json: AsJson = False,
) -> None:
    """Check a proof, offline, against the key of whoever made it.

    Exit code 0: the entry is in a ledger that this key signed; 4: that is not so.
    """
    screen = Screen(as_json=as_json)
    line = sys.stdin.buffer.read(MAX_READ) if entry == "-" else _read(Path(entry))
    proven = check_proof(_read(proof), line.removesuffix(b"\n"), [read_public_key(key)])
    found, checkpoint = proven.entry, proven.checkpoint
    text = f"entry {found.seq}, {found.type}, is in {checkpoint.origin}"
    screen.check(passed=True, text=f"{text} as signed after {checkpoint.size} entries")
    screen.document(
        {
            "ok": True,
            "seq": found.seq,
            "type": found.type,
            "time": found.time,
            "origin": checkpoint.origin,
            "size": checkpoint.size,
            "root": checkpoint.root.hex(),
        }
    )


@ledger.command(epilog="Example: kleash ledger export runs/tiny_ppo --out tiny_ppo.jsonl")
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The file; it must not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Write a whole ledger to one file of lines: its genesis, its entries, its signed checkpoints.

    The entries' lines are as they are stored, so that their hashes are too.
    """
    screen, directory = Screen(as_json=as_json), locate(run)
    chain = intact(directory)
    keys = [key.vkey for key in chain.keys]
    genesis = encode({"keys": keys, "origin": chain.origin, "v": chain.version})
    notes = kept_notes(directory) if chain.keys else []
    lines = [encode({"checkpoint": name, "note": note.decode("utf-8")}) for name, note in notes]
    whole = [genesis, *(entry.line for entry in chain.entries), *lines]
    _write(out, b"".join(line + b"\n" for line in whole))
    screen.say(f"{out}: {len(chain.entries)} entries, {len(lines)} checkpoints")
    screen.document({"file": str(out), "entries": len(chain.entries), "checkpoints": len(lines)})


@ledger.command("log", epilog="Example: kleash ledger log runs/tiny_ppo --type update")
def show(
    run: Run,
    type: Annotated[
        str | None, typer.Option(metavar="T", help="Only entries of this type.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a ledger's entries, one a line."""
    screen = Screen(as_json=as_json)
    chain = verify_chain(locate(run))
    shown = [entry for entry in chain.entries if type in (None, entry.type)]
    screen.table(COLUMNS, [_row(entry) for entry in shown])
    for note in chain.notes:
        screen.say(f"  {note}")
    for problem in chain.problems:
        screen.check(passed=False, text=str(problem))
    entries = [
        {"seq": e.seq, "time": e.time, "type": e.type, "leaf": e.leaf, "body": e.body}
        for e in shown
    ]
    problems = [problem.to_json() for problem in chain.problems]
    screen.document({"entries": entries, "problems": problems, "notes": list(chain.notes)})
    if chain.problems:
        raise typer.Exit(TamperError.exit_code)


def locate(run: Path) -> Path:
    """The ledger's directory.

    Raises:
        InputError: there is none.
    """
    for directory in (run / "ledger", run):
        if has_ledger(directory):
            return directory
    raise InputError("no ledger here", expected="a run directory, or a ledger", got=ascii(str(run)))


def intact(directory: Path) -> Chain:
    """A ledger that is as it was written.

    Raises:
        TamperError: it isn't.
    """
    chain = verify_chain(directory)
    if chain.problems:
        raise TamperError("the ledger is not as it was written", got=str(chain.problems[0]))
    return chain


def _row(entry: Entry) -> list[str]:
    body, verdict = entry.body, entry.body.get("verdict")
    action: Any = verdict.get("action", "") if isinstance(verdict, Mapping) else ""  # pyright: ignore
    step = body.get("step", body.get("steps", ""))
    return [
        str(entry.seq),
        f"{entry.time[:19]}Z",
        entry.type,
        str(step),
        str(action),
        shorten(_what(body), 160),
    ]


def _what(body: Mapping[str, Any]) -> str:
    """What a person wants to know of an entry first."""
    verdict: Any = body.get("verdict")
    reasons = verdict.get("reasons") if isinstance(verdict, Mapping) else None  # pyright: ignore
    kl: Any = body.get("kl")
    parts = [f"{reason}" for reason in (reasons if isinstance(reasons, list) else [])]  # pyright: ignore
    if isinstance(kl, Mapping) and isinstance(kl.get("value"), float | int):  # pyright: ignore
        parts.append(f"KL {number(kl['value'])} nats/{kl.get('unit')}")  # pyright: ignore
    if isinstance(coef := body.get("kl_coef"), float | int):
        parts.append(f"β {number(coef)}")
    parts += [str(body[name]) for name in ("reason", "manifest_sha256") if name in body]
    return "; ".join(parts)


def _new_passphrase(screen: Screen, passphrase_fd: int | None) -> bytes:
    """One that is given, or asked for twice."""
    first = screen.ask_passphrase("new passphrase, several words", passphrase_fd)
    if passphrase_fd is None and screen.ask_passphrase("again") != first:
        raise InputError("the two passphrases differ", do="try again; the key is as it was")
    return first


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_READ)
    except OSError as error:
        raise InputError(f"{str(path)!a} cannot be read", got=error.strerror or "") from error


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise InputError(f"{str(path)!a} is there already", do="name another file") from error
    except OSError as error:
        raise ResourceError(f"{str(path)!a} cannot be written", got=error.strerror or "") from error
