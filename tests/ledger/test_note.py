"""Signed notes: others' verify here, ours cannot be changed unseen, and nothing unsigned is given out."""

import base64
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import InputError, TamperError
from kleash.ledger import (
    ED25519,
    ML_DSA_44,
    Checkpoint,
    PublicKey,
    SigningKey,
    note_text,
    open_checkpoint,
    open_note,
    parse_checkpoint,
    parse_vkey,
    sign_checkpoint,
    sign_note,
)
from kleash.ledger.merkle import EMPTY_ROOT
from kleash.ledger.note import MAX_NOTE, MAX_SIZE

ROOT = bytes(range(32))
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
POST_QUANTUM = SigningKey.generate(ML_DSA_44)
NOTE = sign_checkpoint("kleash/run-1", 7, ROOT, [KEY])
HEAD = Checkpoint(origin="kleash/run-1", size=7, root=ROOT)

# golang.org/x/mod/sumdb/note, the example of its documentation
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SAYING = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
SIGNED = (
    f"{SAYING}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXg"
    "KvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_a_published_note_verifies() -> None:
    assert open_note(SIGNED.encode(), [parse_vkey(NEUMANN)]) == SAYING
    with pytest.raises(TamperError, match="does not hold"):
        open_note(SIGNED.replace("your", "my", 1).encode(), [parse_vkey(NEUMANN)])


def test_a_checkpoint_of_another_tool_verifies() -> None:
    """Made with golang.org/x/mod v0.7.0, by note.GenerateKey and note.Sign."""
    note = (
        "go.example/log\n7\n2zQm6HgGjSjSabbIcXIyLOU3K2V1bQeJAB00g19gHAM=\n\n— go.example/log "
        "/QgU3m8gvtbyK/N/7nhCNcfxksEO1X7oD0kgiPs+oL9axrUllScmh+WYVDWstIBBLlBYB+ZHNGP7rniMVEonFGdeUw8=\n"
    )
    key = parse_vkey("go.example/log+fd0814de+AVXwVRyQLddKD7/AED8XRBH2t9/LCbo3+2aXIVOEalSz")
    assert open_checkpoint(note.encode(), [key], origin="go.example/log").size == 7


def test_a_published_checkpoint_is_read() -> None:
    """The example of C2SP tlog-checkpoint, whose key is not published."""
    note = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/"
        "Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    ).encode()
    checkpoint = parse_checkpoint(note_text(note))
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    with pytest.raises(TamperError, match=r"no signature by a known key.*'kleash-.*sofa"):
        open_checkpoint(note, [KEY.public])


def test_the_bytes_of_a_checkpoint() -> None:
    text, blank, signatures = NOTE.partition(b"\n\n")
    assert (text, blank) == (
        b"kleash/run-1\n7\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        b"\n\n",
    )
    dash, name, blob = signatures.decode().removesuffix("\n").split(" ")
    assert (dash, name) == ("—", KEY.public.name)
    raw = base64.b64decode(blob)
    assert raw[:4] == KEY.public.id
    assert KEY.public.verifies(text + b"\n", raw[4:])


@given(
    origin=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60),
    size=st.integers(1, MAX_SIZE),
    root=st.binary(min_size=32, max_size=32),
)
def test_what_is_signed_is_what_is_opened(origin: str, size: int, root: bytes) -> None:
    head = Checkpoint(origin=origin, size=size, root=root)
    for signers in ([KEY], [KEY, OTHER], [POST_QUANTUM, KEY]):
        note = sign_checkpoint(origin, size, root, signers)
        for key in signers:
            assert open_checkpoint(note, [key.public], origin=origin) == head


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_can_be_a_note(text: str) -> None:
    for lines in (f"{text}\n", f"{text}\n\n", f"\n{text}\n\n{text}\n"):
        assert open_note(sign_note(lines, [KEY]), [KEY.public]) == lines


def flips(note: bytes) -> list[bytes]:
    return [
        note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
        for at in range(len(note))
        for bit in range(8)
    ]


def opens(note: bytes, keys: Sequence[PublicKey]) -> bool:
    try:
        open_checkpoint(note, keys)
    except TamperError:
        return False
    return True


def test_each_flipped_bit_is_seen() -> None:
    assert not [note for note in flips(NOTE) if opens(note, [KEY.public, OTHER.public])]


def test_each_byte_cut_off_or_put_in_is_seen() -> None:
    keys = [KEY.public]
    assert not [end for end in range(len(NOTE)) if opens(NOTE[:end], keys)]
    for at in range(len(NOTE) + 1):
        for byte in (b"\n", b" ", b"A", b"0", b"\x00"):
            assert not opens(NOTE[:at] + byte + NOTE[at:], keys)


def test_of_two_signatures_a_changed_one_is_refused_or_is_nobodys() -> None:
    """A flip in the name or id of one makes it that of an unknown key; the other still says the same."""
    note = sign_checkpoint(HEAD.origin, HEAD.size, HEAD.root, [KEY, OTHER])
    first, second = note.index("—".encode()), note.rindex("—".encode())
    names = range(second + 4, second + 4 + len(OTHER.public.name) + 1 + 6)
    for at in range(len(note)):
        for bit in range(8):
            bad = note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
            is_name = at in names or at + second - first in names
            if opens(bad, [KEY.public, OTHER.public]):
                assert is_name
                assert open_checkpoint(bad, [KEY.public, OTHER.public]) == HEAD
                # Who asks for both by name notices.
                assert not (opens(bad, [KEY.public]) and opens(bad, [OTHER.public]))


def test_ml_dsa_signs_the_cosigned_message() -> None:
    """The fields of C2SP tlog-cosignature, built by hand."""
    note = sign_checkpoint(HEAD.origin, HEAD.size, HEAD.root, [POST_QUANTUM])
    name = POST_QUANTUM.public.name.encode()
    message = (
        b"subtree/v1\n\0"
        + bytes([len(name)])
        + name
        + bytes(8)
        + b"\x0ckleash/run-1"
        + bytes(8)
        + (7).to_bytes(8, "big")
        + ROOT
    )
    blob = base64.b64decode(note.split(b" ")[-1])
    assert (blob[:4], blob[4:12]) == (POST_QUANTUM.public.id, bytes(8))
    assert POST_QUANTUM.public.verifies(message, blob[12:])
    assert open_checkpoint(note, [POST_QUANTUM.public]) == HEAD
    for at in range(0, len(note), 41):
        bad = note[:at] + bytes([note[at] ^ 1]) + note[at + 1 :]
        assert not opens(bad, [POST_QUANTUM.public])


def test_ml_dsa_refuses_what_is_no_cosignature() -> None:
    key = POST_QUANTUM.public
    for blob in (b"x" * 2420, b"\xff" * 8 + b"x" * 2420, bytes(8) + b"x" * 2420, b"short"):
        line = f"— {key.name} {base64.b64encode(key.id + blob).decode()}\n"
        with pytest.raises(TamperError, match="does not hold"):
            open_note(f"{HEAD.to_text()}\n{line}".encode(), [key])
    long = Checkpoint(origin="x" * 256, size=7, root=ROOT).to_text()
    blob = base64.b64encode(key.id + bytes(2428)).decode()
    with pytest.raises(TamperError, match="too long for ML-DSA-44"):
        open_note(f"{long}\n— {key.name} {blob}\n".encode(), [key])
    with pytest.raises(InputError, match="checkpoints alone"):
        sign_note("hello\n", [POST_QUANTUM])


def test_the_time_of_a_cosignature_is_signed_and_below_2_63() -> None:
    name = POST_QUANTUM.public.name.encode()
    for time, fits in ((1, True), (2**63 - 1, True), (2**63, False)):
        stamp = time.to_bytes(8, "big")
        message = (
            b"subtree/v1\n\0%c%b%b\x0ckleash/run-1" % (len(name), name, stamp)
            + bytes(8)
            + (7).to_bytes(8, "big")
            + ROOT
        )
        blob = POST_QUANTUM.public.id + stamp + POST_QUANTUM.sign(message)
        note = f"{TEXT}\n{signature(name.decode(), blob)}".encode()
        assert opens(note, [POST_QUANTUM.public]) == fits


def test_keys_of_one_name_and_two_kinds_are_not_confused() -> None:
    twin = PublicKey(name=KEY.public.name, raw=POST_QUANTUM.public.raw, kind=ML_DSA_44)
    assert twin.id != KEY.public.id
    assert opens(NOTE, [twin, KEY.public])
    assert not opens(NOTE, [twin])


def test_an_id_that_collides_is_not_a_signature() -> None:
    """The id is four bytes and can be made to measure: what counts is the key that the reader holds."""
    line = NOTE.decode().split("\n\n")[1]
    blob = base64.b64decode(line.split(" ")[2])
    forged = KEY.public.id + OTHER.sign(HEAD.to_text().encode())
    note = NOTE.decode().replace(base64.b64encode(blob).decode(), base64.b64encode(forged).decode())
    with pytest.raises(TamperError, match="does not hold"):
        open_checkpoint(note.encode(), [KEY.public])


def signature(name: str = KEY.public.name, blob: bytes | None = None) -> str:
    raw = blob if blob is not None else KEY.public.id + KEY.sign(HEAD.to_text().encode())
    return f"— {name} {base64.b64encode(raw).decode()}\n"


TEXT = HEAD.to_text()


@pytest.mark.parametrize(
    ("note", "why"),
    [
        ("", "not a note"),
        ("\n", "not a note"),
        (TEXT, "not a note"),
        (f"{TEXT}\n", "a blank line and lines"),
        (f"{TEXT}\n{signature()}".removesuffix("\n"), "a blank line and lines"),
        (f"{TEXT}{signature()}", "not a note"),
        (f"{TEXT}\n{signature()}\n", "a blank line and lines"),
        (f"{TEXT}\n{signature()}hello\n", "another form"),
        (f"{TEXT}\n{signature().replace('—', '-')}", "another form"),
        (f"{TEXT}\n— {KEY.public.name}\n", "another form"),
        (f"{TEXT}\n— a+b AAAAAAA=\n", "another form"),
        (f"{TEXT}\n—  AAAAAAA=\n", "another form"),
        (f"{TEXT}\n— x AAAAAA==\n", "another form"),
        (f"{TEXT}\n— x AAAAAAB=\n", "another form"),
        (f"{TEXT}\n— x AAAA\u00e9AA=\n", "another form"),
        (f"{TEXT}\n{signature()}{signature()}", "signs a note once"),
        (f"{TEXT}\n{signature(blob=KEY.public.id + bytes(63))}", "does not hold"),
        (f"{TEXT}\n{signature(blob=KEY.public.id + bytes(65))}", "does not hold"),
        (f"{TEXT}\r\n{signature()}", "not a note"),
        (f"a\tb\n{TEXT}\n{signature()}", "control character"),
        (f"{TEXT}\n{signature('somebody')}", "no signature by a known key"),
        (f"{'x' * MAX_NOTE}\n\n{signature()}", "too long"),
    ],
    ids=itertools.count(),  # the key is another in every process
)
def test_what_is_no_note_is_refused(note: str, why: str) -> None:
    with pytest.raises(TamperError, match=why):
        open_checkpoint(note.encode(), [KEY.public])


def test_bytes_that_are_no_text_are_refused() -> None:
    for byte in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80"):
        with pytest.raises(TamperError, match="UTF-8"):
            open_note(byte + NOTE, [KEY.public])


B64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no empty one"),
        ("o\n7\n", "no empty one"),
        (f"o\n7\n{B64}", "no empty one"),
        (f"\n7\n{B64}\n", "no empty one"),
        (f"o\n7\n{B64}\n\n", "no empty one"),
        *(
            (f"o\n{size}\n{B64}\n", "plain digits")
            for size in ("07", "+7", "-7", "7 ", "0x7", "\u0667", "1_0")
        ),
        (f"o\n{MAX_SIZE + 1}\n{B64}\n", "plain digits"),
        (f"o\n{'9' * 5000}\n{B64}\n", "plain digits"),
        (f"o\n7\n{B64[:-1]}\n", "canonical base64"),
        (f"o\n7\n{B64[:-2]}9=\n", "canonical base64"),
        (f"o\n7\n {B64}\n", "canonical base64"),
        ("o\n7\nAAAA\n", "3 bytes"),
        (f"o\n0\n{B64}\n", "another root"),
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_refused(text: str, why: str) -> None:
    with pytest.raises(TamperError, match=why):
        parse_checkpoint(text)


def test_extension_lines_are_signed_and_left_out() -> None:
    note = sign_note(f"{TEXT}more\nand more\n", [KEY])
    assert open_checkpoint(note, [KEY.public]) == HEAD
    assert not opens(note.replace(b"and", b"or "), [KEY.public])


PIECES = st.sampled_from(
    [b"\n", b"\n\n", b" ", "— ".encode(), b"0", b"7", B64.encode(), b"AAAA", b"\xff", b"o", b"+"]
    + [piece for line in NOTE.split(b"\n") for piece in line.split(b" ")]
)


@given(st.lists(PIECES, max_size=14).map(b"".join) | st.binary(max_size=200))
def test_whatever_is_read_is_opened_or_refused(data: bytes) -> None:
    assert opens(data, [KEY.public, POST_QUANTUM.public]) == (data == NOTE)


def test_a_ledger_that_has_no_entries_yet() -> None:
    note = sign_checkpoint("o", 0, EMPTY_ROOT, [KEY])
    assert open_checkpoint(note, [KEY.public]).size == 0


def test_the_checkpoint_of_another_ledger_is_refused() -> None:
    with pytest.raises(TamperError, match="'kleash/run-2'; got: 'kleash/run-1'"):
        open_checkpoint(NOTE, [KEY.public], origin="kleash/run-2")


def test_others_may_sign_too() -> None:
    for line in ("— x AAAAAAA=\n", "— witness.example/é AAAAAAAAAAA=\n", signature("somebody")):
        note = NOTE + line.encode()
        assert open_checkpoint(note, [KEY.public]) == HEAD
        assert open_checkpoint(f"{TEXT}\n{line}{signature()}".encode(), [KEY.public]) == HEAD


def test_a_reader_without_a_key_learns_nothing() -> None:
    for keys in ([], [OTHER.public]):
        with pytest.raises(TamperError, match="no signature by a known key"):
            open_checkpoint(NOTE, keys)


def test_keys_that_cannot_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opens(NOTE, [KEY.public, KEY.public])
    monkeypatch.setattr(PublicKey, "id", property(lambda _: b"same"))
    twin = PublicKey(name=KEY.public.name, raw=OTHER.public.raw)
    with pytest.raises(InputError, match="have one id"):
        open_note(NOTE, [KEY.public, twin])


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [
        ("", 7, ROOT),
        ("two\nlines", 7, ROOT),
        ("two\n8", 7, ROOT),
        ("tab\t", 7, ROOT),
        ("\ud800", 7, ROOT),
        ("x" * 256, 7, ROOT),
        ("o", -1, ROOT),
        ("o", MAX_SIZE + 1, ROOT),
        ("o", 0, ROOT),
        ("o", 7, b"short"),
        (f"o\n7\n{B64}", 7, ROOT),
    ],
)
def test_what_a_reader_would_not_take_is_not_signed(origin: str, size: int, root: bytes) -> None:
    with pytest.raises(InputError):
        sign_checkpoint(origin, size, root, [KEY])


def test_what_cannot_be_a_note_is_not_signed() -> None:
    for text in ("", "\n", "no end", "a\tb\n", "a\r\n", "\ud800\n"):
        with pytest.raises(InputError, match="not the text of a note"):
            sign_note(text, [KEY])
    with pytest.raises(InputError, match="too long"):
        sign_note("x" * MAX_NOTE + "\n", [KEY])
    with pytest.raises(InputError, match="needs a signature"):
        sign_note("a\n", [])
    with pytest.raises(InputError, match="twice"):
        sign_note("a\n", [KEY, KEY])
    assert KEY.public.kind == ED25519
