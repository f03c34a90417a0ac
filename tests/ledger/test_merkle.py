"""The tree: equal to its recursive definition and to what others published; only what is true of it can be proved."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import InputError, TamperError
from kleash.ledger import (
    Frontier,
    consistency_proof,
    hash_line,
    inclusion_proof,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from kleash.ledger.merkle import EMPTY_ROOT

VECTORS = json.loads((Path(__file__).parent / "vectors" / "rfc6962.json").read_bytes())
PUBLISHED = [bytes.fromhex(hash_line(bytes.fromhex(text))) for text in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(text) for text in VECTORS["roots"]]
HASHES = {name: bytes.fromhex(text) for name, text in VECTORS["hashes"].items()}
SOME, EMPTY = HASHES["some"], HASHES["empty tree"]


def leaves_of(number: int) -> list[bytes]:
    return [hashlib.sha256(b"\x00%d" % index).digest() for index in range(number)]


# The definitions of RFC 9162 §2.1, as recursive as they are written there.


def slow_root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = split(len(leaves))
    return hashlib.sha256(b"\x01" + slow_root(leaves[:half]) + slow_root(leaves[half:])).digest()


def slow_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = split(len(leaves))
    if index < half:
        return [*slow_path(index, leaves[:half]), slow_root(leaves[half:])]
    return [*slow_path(index - half, leaves[half:]), slow_root(leaves[:half])]


def slow_subproof(old: int, leaves: Sequence[bytes], *, is_old_tree: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if is_old_tree else [slow_root(leaves)]
    half = split(len(leaves))
    if old <= half:
        left = slow_subproof(old, leaves[:half], is_old_tree=is_old_tree)
        return [*left, slow_root(leaves[half:])]
    right = slow_subproof(old - half, leaves[half:], is_old_tree=False)
    return [*right, slow_root(leaves[:half])]


def split(size: int) -> int:
    half = 1
    while 2 * half < size:
        half *= 2
    return half


def test_roots_and_proofs_are_those_of_the_definition() -> None:
    leaves = leaves_of(40)
    tree = Frontier()
    for size in range(41):
        assert tree.size == size
        assert tree.root == root_of(leaves[:size]) == slow_root(leaves[:size])
        for index in range(size):
            assert list(inclusion_proof(leaves, index, size)) == slow_path(index, leaves[:size])
        for old in range(1, size + 1):
            expected = slow_subproof(old, leaves[:size], is_old_tree=True)
            assert list(consistency_proof(leaves, old, size)) == expected
        tree = tree.append(leaves[size]) if size < 40 else tree


def test_every_proof_verifies_and_only_of_what_it_is_a_proof() -> None:
    leaves = leaves_of(17)
    roots = [root_of(leaves[:size]) for size in range(18)]
    for size in range(1, 18):
        for index in range(size):
            proof = inclusion_proof(leaves, index, size)
            for claimed in range(size):
                fits = includes(leaves[claimed], index, size, proof, roots[size])
                assert fits == (claimed == index)
                assert includes(leaves[index], claimed, size, proof, roots[size]) == fits
        for old in range(1, size + 1):
            proof = consistency_proof(leaves, old, size)
            for claimed in range(1, size + 1):
                fits = continues(old, roots[claimed], size, roots[size], proof)
                assert fits == (claimed == old)


def test_a_tree_of_another_history_is_not_consistent() -> None:
    leaves = leaves_of(11)
    for old in range(1, 11):
        for changed in range(old):
            forged = [*leaves[:changed], SOME, *leaves[changed + 1 :]]
            proof = consistency_proof(forged, old, 11)
            assert not continues(old, root_of(leaves[:old]), 11, root_of(forged), proof)


def test_the_published_roots_and_proofs() -> None:
    for size, root in enumerate(ROOTS):
        assert root_of(PUBLISHED[:size]) == root
    for case in VECTORS["inclusion"]:
        proof = [bytes.fromhex(text) for text in case["proof"]]
        assert list(inclusion_proof(PUBLISHED, case["index"], case["size"])) == proof
    for case in VECTORS["consistency"]:
        proof = [bytes.fromhex(text) for text in case["proof"]]
        assert list(consistency_proof(PUBLISHED, case["old"], case["new"])) == proof


def corrupt(proof: list[bytes], *, bit: int, others: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The broken proofs of the published test data."""
    for extra in (b"", *others):
        yield [*proof, extra]
        yield [extra, *proof]
    for place, value in enumerate(proof):
        yield [*proof[:place], bytes([value[0] ^ bit]) + value[1:], *proof[place + 1 :]]
    if proof:
        yield proof[:-1]


def test_the_published_inclusion_cases() -> None:
    held = refused = 0
    for case in VECTORS["inclusion"]:
        index, size = case["index"], case["size"]
        leaf, root = PUBLISHED[index], ROOTS[size]
        proof = [bytes.fromhex(text) for text in case["proof"]]
        assert includes(leaf, index, size, proof, root)
        wrong: list[tuple[Any, ...]] = [
            *((leaf, other, size, proof, root) for other in (index - 1, index + 1, index ^ 2)),
            *((leaf, index, other, proof, root) for other in (size * 2, size // 2)),
            (b"WrongLeaf", index, size, proof, root),
            *((leaf, index, size, proof, other) for other in (EMPTY, SOME)),
            *((leaf, index, size, other, root) for other in corrupt(proof, bit=8, others=[root])),
        ]
        if len(proof) > 1:
            wrong.append((leaf, index, size, [proof[0], SOME, *proof[1:]], root))
        assert not [case for case in wrong if includes(*case)]
        held, refused = held + 1, refused + len(wrong)
    leaf = bytes.fromhex(hash_line(b"data"))
    assert includes(leaf, 0, 1, [], leaf)
    pairs = [(leaf, b""), (b"", leaf), (b"", b"")]
    assert not [pair for pair in pairs if includes(pair[0], 0, 1, [], pair[1])]
    for case in VECTORS["refused"]["inclusion"]:
        for leaf, root in ((SOME, b""), (b"", EMPTY), (SOME, EMPTY)):
            assert not includes(leaf, case["index"], case["size"], [], root)
            refused += 1
    assert (held + 1, refused + len(pairs)) == (6, 92)


def test_the_published_consistency_cases() -> None:
    held = refused = 0
    for case in VECTORS["consistency"]:
        old, new = case["old"], case["new"]
        first, second = ROOTS[old], ROOTS[new]
        proof = [bytes.fromhex(text) for text in case["proof"]]
        assert continues(old, first, new, second, proof)
        held += 1
        if not proof:
            continue
        wrong: list[tuple[Any, ...]] = [
            *((other, first, new, second, proof) for other in (old - 1, old + 1, old ^ 2)),
            *((old, first, other, second, proof) for other in (new * 2, new // 2)),
            (old, b"WrongRoot", new, second, proof),
            (old, first, new, b"WrongRoot", proof),
            (old, second, new, first, proof),
            (old, first, new, second, []),
            (old, first, new, second, [proof[0], *proof]),
            *(
                (old, first, new, second, other)
                for other in corrupt(proof, bit=16, others=[first, second])
            ),
        ]
        assert not [case for case in wrong if continues(*case)]
        refused += len(wrong)
    for case in VECTORS["refused"]["consistency"]:
        first, second = HASHES[case["old_root"]], HASHES[case["new_root"]]
        proof = [HASHES[name] for name in case["proof"]]
        assert not continues(case["old"], first, case["new"], second, proof)
        refused += 1
    assert (held, refused) == (5, 90)
    # Published as consistent, since equal: but these roots are no hashes, and an empty tree shows nothing.
    for size, root in ((0, HASHES["short 1"]), (1, HASHES["short 2"])):
        assert not continues(size, root, size, root, [])


@given(
    leaves=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70),
    data=st.data(),
)
def test_a_flipped_bit_of_a_proof_is_seen(leaves: list[bytes], data: st.DataObject) -> None:
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaves, index, size)
    root = root_of(leaves)
    assert includes(leaves[index], index, size, proof, root)
    assert not includes(flip(leaves[index], data), index, size, proof, root)
    assert not includes(leaves[index], index, size, proof, flip(root, data))
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        bad = [*proof[:place], flip(proof[place], data), *proof[place + 1 :]]
        assert not includes(leaves[index], index, size, bad, root)


@given(old=st.integers(1, 200), more=st.integers(1, 200))
def test_what_was_appended_is_consistent(old: int, more: int) -> None:
    leaves = leaves_of(old + more)
    tree = Frontier()
    for leaf in leaves[:old]:
        tree = tree.append(leaf)
    first = tree.root
    for leaf in leaves[old:]:
        tree = tree.append(leaf)
    proof = consistency_proof(leaves, old, old + more)
    assert continues(old, first, old + more, tree.root, proof)
    assert not continues(old, first, old + more, tree.root, proof[:-1])


def test_the_state_of_a_writer_is_small() -> None:
    tree = Frontier()
    for leaf in leaves_of(1000):
        tree = tree.append(leaf)
        assert len(tree.subtrees) == tree.size.bit_count()


def test_what_is_no_hash_or_not_in_the_tree_is_refused() -> None:
    leaves = leaves_of(3)
    with pytest.raises(InputError, match="31 bytes"):
        Frontier().append(bytes(31))
    for index, size in ((-1, 3), (3, 3), (0, 0), (0, 4)):
        with pytest.raises(InputError, match="not in the tree"):
            inclusion_proof(leaves, index, size)
    for old, new in ((0, 3), (2, 1), (1, 4)):
        with pytest.raises(InputError, match="begins with the other"):
            consistency_proof(leaves, old, new)
    assert Frontier().root == EMPTY_ROOT == ROOTS[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"old": 0}, "1 <= old <= new"),
        ({"old": 8}, "1 <= old <= new"),
        ({"old": 7, "proof": [SOME]}, "too many"),
        ({"old": 7}, "two histories"),
        ({"old": 3, "proof": []}, "too few"),
        ({"old": 3, "old_root": SOME}, "history was rewritten"),
        ({"old": 3, "new_root": SOME}, "does not lead to the root"),
        ({"old": 3, "new": 20}, "too few"),
        ({"old": 3, "new": 4}, "too many"),
        ({"old": 3, "new_root": b"short"}, "32 bytes"),
    ],
)
def test_a_refusal_says_why(change: dict[str, Any], why: str) -> None:
    leaves = leaves_of(7)
    whole: dict[str, Any] = {"old_root": root_of(leaves[:3]), "new": 7, "new_root": root_of(leaves)}
    whole["proof"] = consistency_proof(leaves, 3, 7) if change["old"] == 3 else []
    with pytest.raises(TamperError, match=why):
        verify_consistency(**(whole | change))


def includes(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    try:
        verify_inclusion(leaf=leaf, index=index, size=size, proof=proof, root=root)
    except TamperError:
        return False
    return True


def continues(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    try:
        verify_consistency(old=old, old_root=old_root, new=new, new_root=new_root, proof=proof)
    except TamperError:
        return False
    return True


def flip(value: bytes, data: st.DataObject) -> bytes:
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    return bytes(byte ^ (1 << bit % 8 if bit // 8 == at else 0) for at, byte in enumerate(value))
