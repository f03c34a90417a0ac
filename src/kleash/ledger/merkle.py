"""The Merkle tree over a ledger's entries: one hash for them all, and short proofs about it.

    MTH({})     = SHA-256()
    MTH({d})    = d                                   d: the leaf hash, SHA-256(0x00 || line)
    MTH(D[0:n]) = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n]))     k: the largest power of two below n

Source: RFC 6962 §2.1; the algorithms that verify are those of RFC 9162 §2.1.3.2 and §2.1.4.2. A chain of hashes shows
that nothing changed to whoever reads all of it; the tree shows it to whoever holds one entry and log2(n) hashes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from kleash.errors import InputError, TamperError

HASH_SIZE = 32
"""Bytes of a SHA-256."""
EMPTY_ROOT = hashlib.sha256().digest()
"""The root of a tree without leaves."""


@dataclass(frozen=True, slots=True)
class Frontier:
    r"""A tree that only grows, as its right edge: what a writer keeps to know the root after each entry.

    For each bit of `size` that is set there is one whole subtree; all else is under these. A leaf costs two hashes
    on average and the root at most log2(size), whatever came before.

    Examples:
        >>> tree = Frontier().append(hashlib.sha256(b"\x00").digest())
        >>> tree.size, tree.root.hex()[:16]
        (1, '6e340b9cffb37a98')
    """

    size: int = 0
    """Leaves so far."""
    subtrees: tuple[bytes, ...] = ()
    """Roots of the whole subtrees, the largest, leftmost, first."""

    @classmethod
    def of(cls, leaves: Iterable[bytes]) -> Self:
        """The tree over leaf hashes: where a writer goes on with a ledger that has some.

        Raises:
            InputError: a leaf is no SHA-256.
        """
        tree = cls()
        for leaf in leaves:
            tree = tree.append(leaf)
        return tree

    def append(self, leaf: bytes) -> Self:
        """The tree with one more leaf hash.

        Raises:
            InputError: the leaf is no SHA-256.
        """
        if len(leaf) != HASH_SIZE:
            raise InputError(
                "not the hash of an entry",
                expected=f"{HASH_SIZE} bytes",
                got=f"{len(leaf)} bytes",
            )
        subtrees = list(self.subtrees)
        node, size = leaf, self.size
        while size & 1:  # two subtrees of one size become one of the next
            node = _node(subtrees.pop(), node)
            size >>= 1
        return type(self)(self.size + 1, (*subtrees, node))

    @property
    def root(self) -> bytes:
        """MTH of the leaves so far."""
        if not self.subtrees:
            return EMPTY_ROOT
        *left, root = self.subtrees
        for subtree in reversed(left):
            root = _node(subtree, root)
        return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes.

    Raises:
        InputError: a leaf is no SHA-256.

    Examples:
        >>> root_of([]).hex()[:16]
        'e3b0c44298fc1c14'
    """
    return Frontier.of(leaves).root


def inclusion_proof(leaves: Sequence[bytes], index: int, size: int) -> tuple[bytes, ...]:
    """The hashes that lead from leaf `index` to the root over the first `size` leaves, PATH(m, D[n]) of RFC 9162.

    Raises:
        InputError: there are fewer than `size` leaves, or `index` is not among them.

    Examples:
        >>> leaves = [hashlib.sha256(bytes([0, number])).digest() for number in range(5)]
        >>> len(inclusion_proof(leaves, 0, 5)), inclusion_proof(leaves, 4, 5) == (root_of(leaves[:4]),)
        (3, True)
    """
    if not 0 <= index < size <= len(leaves):
        raise InputError(
            "no proof of an entry that is not in the tree",
            expected="0 <= index < size, and size leaves",
            got=f"index {index}, size {size}, {len(leaves)} leaves",
        )
    proof: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(root_of(leaves[middle:end]))
            end = middle
        else:
            proof.append(root_of(leaves[start:middle]))
            start = middle
    return tuple(reversed(proof))


def consistency_proof(leaves: Sequence[bytes], old: int, new: int) -> tuple[bytes, ...]:
    """The hashes that show the tree over `new` leaves to begin with that over `old`, PROOF(m, D[n]) of RFC 9162.

    Raises:
        InputError: not 1 <= old <= new <= number of leaves; anything follows an empty tree, so it proves nothing.

    Examples:
        >>> leaves = [hashlib.sha256(bytes([0, number])).digest() for number in range(5)]
        >>> consistency_proof(leaves, 4, 5) == (leaves[4],)
        True
    """
    if not 1 <= old <= new <= len(leaves):
        raise InputError(
            "no proof that one tree begins with the other",
            expected="1 <= old <= new, and new leaves",
            got=f"old {old}, new {new}, {len(leaves)} leaves",
        )
    proof: list[bytes] = []
    start, end = 0, new
    while old < end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(root_of(leaves[middle:end]))
            end = middle
        else:
            proof.append(root_of(leaves[start:middle]))
            start = middle
    if start:  # else the subtree is the old tree itself, whose root the verifier has
        proof.append(root_of(leaves[start:end]))
    return tuple(reversed(proof))


def verify_inclusion(
    *, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that `leaf` is entry `index` of the tree of that `size` and `root`: RFC 9162 §2.1.3.2.

    Raises:
        TamperError: it is not, by this proof.
    """
    _check_hashes(leaf, root, *proof)
    if not 0 <= index < size:
        raise TamperError(
            "the proof is for an entry beyond the tree",
            expected=f"an index below {size}",
            got=str(index),
        )
    place, last, node = index, size - 1, leaf
    for sibling in proof:
        if not last:
            raise TamperError("the inclusion proof has too many hashes")
        if place & 1 or place == last:
            node = _node(sibling, node)
            place, last = _climb(place, last)
        else:
            node = _node(node, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise TamperError("the inclusion proof has too few hashes")
    if node != root:
        raise TamperError("the entry is not in the tree at that place: the root is another")


def verify_consistency(
    *, old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of `new` leaves begins with the whole tree of `old`: RFC 9162 §2.1.4.2.

    Raises:
        TamperError: it does not, by this proof: history was rewritten between the two.
    """
    _check_hashes(old_root, new_root, *proof)
    if not 1 <= old <= new:
        raise TamperError(
            "sizes that nothing can be shown of",
            expected="1 <= old <= new: any tree begins with an empty one, and none with a longer",
            got=f"old {old}, new {new}",
        )
    if old == new:
        if proof:
            raise TamperError("the consistency proof has too many hashes")
        if old_root != new_root:
            raise TamperError("two trees of one size have two roots: there are two histories")
        return
    # An old tree that is one whole subtree of the new is where the proof starts, and is not in it.
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    _follow(path, old=old, old_root=old_root, new=new, new_root=new_root)


def _follow(path: list[bytes], *, old: int, old_root: bytes, new: int, new_root: bytes) -> None:
    """Both roots from one path: each hash to the left is part of both trees, each to the right of the new alone."""
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old_node = new_node = path[0] if path else b""
    for sibling in path[1:]:
        if not last:
            raise TamperError("the consistency proof has too many hashes")
        if place & 1 or place == last:
            old_node, new_node = _node(sibling, old_node), _node(sibling, new_node)
            place, last = _climb(place, last)
        else:
            new_node = _node(new_node, sibling)
        place, last = place >> 1, last >> 1
    if last or not path:
        raise TamperError("the consistency proof has too few hashes")
    if old_node != old_root:
        raise TamperError("the new tree does not begin with the old one: history was rewritten")
    if new_node != new_root:
        raise TamperError("the consistency proof does not lead to the root of the new tree")


def _climb(place: int, last: int) -> tuple[int, int]:
    """Up the levels where a node at the right edge has no sibling and stands for itself."""
    while place and not place & 1:
        place, last = place >> 1, last >> 1
    return place, last


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _check_hashes(*hashes: bytes) -> None:
    if any(len(value) != HASH_SIZE for value in hashes):
        raise TamperError("not a hash", expected=f"{HASH_SIZE} bytes each")
