"""DSSE envelopes: what is given out of one is what was signed, whoever wrote it."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from kleash.errors import InputError, TamperError
from kleash.ledger import ML_DSA_44, PublicKey, SigningKey
from kleash.ledger.envelope import (
    MAX_ENVELOPE,
    MAX_SIGNATURES,
    PAYLOAD_TYPE,
    carried_keys,
    looks_like_envelope,
    open_envelope,
    pae,
    parse_strict,
    sign_envelope,
)

# RFC 8032 §7.1: the secret keys of TEST 1 and TEST 2
SECRET = Ed25519PrivateKey.from_private_bytes(
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
)
KEY = SigningKey.of(SECRET, "rfc8032")
OTHER = SigningKey.of(
    Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    ),
    "other",
)
POST_QUANTUM = PublicKey(name="post-quantum", raw=bytes(1312), kind=ML_DSA_44)
PAYLOAD = b'{"b":1,"a":[2]}'
GOLDEN = (
    b'{"payload":"eyJiIjoxLCJhIjpbMl19","payloadType":"application/vnd.in-toto+json","'
    b'signatures":[{"keyid":"rfc8032+bf1ef259+AddamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3'
    b'B1Ea","sig":"gsm8oKtcqukPzLl1XZFegQsmUM6Gnw3LhNOIOFtqcGIRPlRssFkh1UNrSC2BgOWL/Ae'
    b'dGMV1Hb9LpHnD9LFDCQ=="}]}\n'
)


def edited(envelope: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(envelope) | changes).encode()


def signature(key: SigningKey, payload: bytes = PAYLOAD, keyid: str | None = None) -> dict:
    made = {"sig": base64.b64encode(key.sign(pae(PAYLOAD_TYPE, payload))).decode()}
    return made if keyid is None else made | {"keyid": keyid}


def test_the_bytes_of_an_envelope_are_fixed() -> None:
    """Ed25519 has one signature of a key and a text, and the envelope one encoding."""
    assert sign_envelope(PAYLOAD, [KEY]) == GOLDEN
    opened = open_envelope(GOLDEN, [KEY.public])
    assert (opened.payload, opened.keys) == (PAYLOAD, (KEY.public,))


def test_no_two_pairs_of_type_and_payload_are_signed_alike() -> None:
    assert pae("", b"") == b"DSSEv1 0  0 "
    assert pae("é", b"\x00") == "DSSEv1 2 é 1 \x00".encode()
    assert len({pae("a", b"1 b"), pae("a 1", b"b"), pae("a 3 1", b" b")}) == 3


def test_every_flipped_bit_is_refused_or_changes_nothing_that_counts() -> None:
    """A hint may be damaged, or no longer be called one: what is given out is what was signed, by whom it was."""
    taken: list[str] = []
    for place in range(8 * len(GOLDEN)):
        changed = bytearray(GOLDEN)
        changed[place // 8] ^= 1 << place % 8
        try:
            opened = open_envelope(bytes(changed), [KEY.public])
        except TamperError:
            continue
        assert (opened.payload, opened.keys) == (PAYLOAD, (KEY.public,))
        now, then = json.loads(changed), json.loads(GOLDEN)
        assert now["payload"] == then["payload"]
        assert now["payloadType"] == then["payloadType"]
        assert now["signatures"][0]["sig"] == then["signatures"][0]["sig"]
        taken.append(chr(GOLDEN[place // 8]))
    hint = f'keyid"{KEY.public.vkey}'
    assert 0 < len(taken) <= 8 * len(hint)
    assert set(taken) <= set(hint)


def test_no_part_of_an_envelope_is_one() -> None:
    whole = GOLDEN.rstrip()
    for end in range(len(whole)):
        with pytest.raises(TamperError, match="not an envelope"):
            open_envelope(whole[:end], [KEY.public])


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": base64.b64encode(b'{"b":2,"a":[2]}').decode()},
        {"payload": ""},
        {"payloadType": "text/plain"},
        {"payloadType": ""},
        {"signatures": [signature(OTHER, keyid=KEY.public.vkey)]},
        {"signatures": [signature(OTHER)]},
        {"signatures": [signature(KEY), signature(KEY)]},
        {"signatures": [signature(KEY), signature(OTHER, keyid=KEY.public.vkey)]},
        {"signatures": [{"sig": ""}]},
    ],
)
def test_what_was_not_signed_is_not_given_out(changes: dict[str, Any]) -> None:
    with pytest.raises(TamperError):
        open_envelope(edited(GOLDEN, **changes), [KEY.public])


def test_a_hint_is_no_more_than_that() -> None:
    for keyid in ("", "no key", OTHER.public.vkey, None):
        changed = edited(GOLDEN, signatures=[signature(KEY, keyid=keyid)])
        assert open_envelope(changed, [OTHER.public, KEY.public]).keys == (KEY.public,)


def test_others_may_sign_too() -> None:
    envelope = sign_envelope(PAYLOAD, [OTHER, KEY])
    assert open_envelope(envelope, [KEY.public]).keys == (KEY.public,)
    assert open_envelope(envelope, [KEY.public, OTHER.public]).keys == (OTHER.public, KEY.public)
    assert carried_keys(envelope) == (OTHER.public, KEY.public)
    with pytest.raises(TamperError, match="no signature by a known key"):
        open_envelope(envelope, [SigningKey.generate().public])
    with pytest.raises(TamperError, match="no signature by a known key"):
        open_envelope(envelope, [])


def test_a_signed_payload_of_another_type_is_not_read() -> None:
    with pytest.raises(TamperError, match="holds something else"):
        open_envelope(sign_envelope(PAYLOAD, [KEY], "text/plain"), [KEY.public])


def test_the_payload_is_verified_as_it_is_stored() -> None:
    payload = b'{ "b": 1,\n "a": [2] }\xff'
    assert open_envelope(sign_envelope(payload, [KEY]), [KEY.public]).payload == payload


def test_fields_that_are_not_known_are_left_alone() -> None:
    more = [signature(KEY) | {"extension": {"kind": "x"}}]
    changed = edited(GOLDEN, signatures=more, comment="more")
    assert open_envelope(changed, [KEY.public]).payload == PAYLOAD


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b"{}",
        b"\xff",
        "\ufeff{}".encode(),
        GOLDEN[:-2] + b',"payload":"e30="}',
        GOLDEN.replace(b'"keyid"', b'"sig":"","keyid"'),
        GOLDEN.replace(b'"payload":"', b'"payload":" '),
        edited(GOLDEN, payload="e30"),
        edited(GOLDEN, payload="e31="),
        edited(GOLDEN, payload="e30=\n"),
        edited(GOLDEN, payload=1),
        edited(GOLDEN, payload=["e30="]),
        edited(GOLDEN, payloadType=None),
        edited(GOLDEN, payloadType="\ud800"),
        edited(GOLDEN, signatures={}),
        edited(GOLDEN, signatures=[]),
        edited(GOLDEN, signatures=[1]),
        edited(GOLDEN, signatures=[{}]),
        edited(GOLDEN, signatures=[{"sig": "e30=", "keyid": 1}]),
        edited(GOLDEN, signatures=[{"sig": "e30="}] * (MAX_SIGNATURES + 1)),
        edited(GOLDEN, more=[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]),
        b'{"a":' * 100_000,
        b'{"a":NaN}',
        b'{"a":' + b"9" * 10_000 + b"}",
        GOLDEN + b" " * MAX_ENVELOPE,
    ],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(TamperError, match="not an envelope") as caught:
        open_envelope(data, [KEY.public])
    assert len(str(caught.value)) < 500


def test_a_key_that_the_envelope_gives_is_its_own_word() -> None:
    assert carried_keys(GOLDEN) == (KEY.public,)
    twice = edited(GOLDEN, signatures=[signature(KEY, keyid=KEY.public.vkey)] * 2)
    assert carried_keys(twice) == (KEY.public,)
    for keyid in ("", "kleash", POST_QUANTUM.vkey):
        with pytest.raises(InputError, match="does not say which key"):
            carried_keys(edited(GOLDEN, signatures=[signature(KEY, keyid=keyid)]))
    damaged = KEY.public.vkey.replace("+", "+0", 1).replace("+0", "+", 1)[:-4] + "AAAA"
    with pytest.raises(TamperError, match="a keyid is no key"):
        carried_keys(edited(GOLDEN, signatures=[signature(KEY, keyid=damaged)]))


def test_what_is_not_signed() -> None:
    for signers in ([], [KEY, KEY], [SigningKey.generate() for _ in range(MAX_SIGNATURES + 1)]):
        with pytest.raises(InputError, match="other keys"):
            sign_envelope(PAYLOAD, signers)
    with pytest.raises(InputError, match="too long"):
        sign_envelope(b" " * MAX_ENVELOPE, [KEY])


def test_keys_that_others_could_not_verify_are_refused() -> None:
    with pytest.raises(InputError, match="Ed25519"):
        open_envelope(GOLDEN, [KEY.public, POST_QUANTUM])
    with pytest.raises(InputError, match="Ed25519"):
        sign_envelope(PAYLOAD, [SigningKey(POST_QUANTUM, None)])


@pytest.mark.parametrize(
    ("start", "is_one"),
    [
        (GOLDEN, True),
        (b'\n{\n  "signatures" : []', True),
        (b'{"payloadType":', True),
        (b'{"payloads":', False),
        (b'{"keys":["', False),
        (b"", False),
        (b"\x00" * 300, False),
    ],
)
def test_what_a_file_begins_with_says_whether_to_try(start: bytes, is_one: bool) -> None:
    assert looks_like_envelope(start) is is_one


def test_json_that_is_read_in_one_way() -> None:
    assert parse_strict(b' {"a": {"b": 1}} ') == {"a": {"b": 1}}
    with pytest.raises(TamperError, match="twice"):
        parse_strict(b'{"a": {"b": 1, "b": 1}}')


def theirs(key: SigningKey, keyid: str) -> CryptoSigner:
    public = SSlibKey.from_crypto(key.private.public_key(), keyid=keyid)
    return CryptoSigner(key.private, public)


def test_securesystemslib_verifies_ours() -> None:
    envelope = Envelope.from_dict(json.loads(sign_envelope(PAYLOAD, [KEY, OTHER])))
    signers = [theirs(key, key.public.vkey) for key in (KEY, OTHER)]
    assert envelope.pae() == pae(PAYLOAD_TYPE, PAYLOAD)
    assert len(envelope.verify([each.public_key for each in signers], 2)) == 2
    stranger = theirs(SigningKey.generate(), KEY.public.vkey)
    with pytest.raises(VerificationError):
        envelope.verify([stranger.public_key], 1)


@pytest.mark.parametrize("keyid", ["", "theirs", KEY.public.vkey])
def test_ours_opens_that_of_securesystemslib(keyid: str) -> None:
    payload = bytes(range(256))
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(theirs(KEY, keyid))
    written = json.dumps(envelope.to_dict()).encode()
    assert open_envelope(written, [KEY.public]).payload == payload
    with pytest.raises(TamperError):
        open_envelope(written, [OTHER.public])
