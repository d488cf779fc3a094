"""Whether all processes hold the same state."""

import hashlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.packing import Shard
from purestep._core.types import Tree
from purestep._parallel.groups import group_of
from purestep._steps.state import check_arrays

_CHUNK = 1 << 26  # elements whose hash is computed at a time
_WORDS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint32}  # by the bytes of an element


def check(state: Tree, *, group: mx.distributed.Group | None = None) -> None:
    """Refuse a state that differs between processes, with the first path that does.

    Every process must call it at the same place. It compares the paths, shapes and dtypes, and hashes of 64
    bits of the arrays. It reads the state once and waits for the device.

    Args:
        state: a `TrainState` or any tree of arrays.
        group: the processes; `None` for all of them.

    Raises:
        ValueError: on every process, if two of them differ.

    >>> import purestep as ps
    >>> check({"w": mx.ones(3)})  # a single process agrees with itself
    """
    agree("check", state, group_of("check", group))


def agree(caller: str, state: Tree, group: mx.distributed.Group, name: str = "the state") -> None:
    """Do what `check` does, with errors that name `caller`."""
    check_arrays(caller, name, state)
    state = _without_parts(state)
    if group.size() == 1:
        return
    mx.eval(state)  # first the sums of the step that made it: a rank may have them yet to compute
    found = tree.items(state)
    lines = [f"{path or name} {tree.dtype_name(leaf.dtype)} {leaf.shape}" for path, leaf in found]
    agree_on_lines(caller, name, lines, group)
    hashes = mx.stack([_hash(leaf) for _, leaf in found])
    every = _gathered(hashes, group)
    for index, (path, _) in enumerate(found):
        other = [rank for rank, each in enumerate(every) if each[index] != every[0][index]]
        if other:
            ranks = f"rank{'s' * (len(other) > 1)} {', '.join(map(str, other))}"
            raise checks.error(
                caller,
                f"{path or name} must be equal on all ranks, got other values on {ranks} than on rank 0",
            )


def agree_on_lines(caller: str, name: str, lines: Sequence[str], group: mx.distributed.Group) -> None:
    """Refuse lines that differ between processes, which tell how something is built.

    A hash of fixed size is compared first: other sizes would not fit together.
    """
    text = "\n".join(lines).encode()
    digests = _gathered(mx.array(list(hashlib.sha256(text).digest()), mx.int32), group)
    if all(each == digests[0] for each in digests):
        return
    length = max(length for (length,) in _gathered(mx.array([len(text)], mx.int32), group))
    rows = _gathered(mx.array(list(text.ljust(length, b"\n")), mx.int32), group)
    texts = [bytes(row).decode().splitlines() for row in rows]
    for rank, other in enumerate(texts):
        if other != texts[0] and sorted(other) == sorted(
            texts[0]
        ):  # sums over leaves would be rounded otherwise
            raise checks.error(
                caller,
                f"{name} must list the keys of its dicts in the same order on all ranks, got another order "
                f"on rank {rank} than on rank 0",
            )
        mine, its = _first_without(texts[0], other), _first_without(other, texts[0])
        if mine or its:
            raise checks.error(
                caller,
                f"{name} must be built alike on all ranks, got {mine or 'nothing'} on rank 0 and "
                f"{its or 'nothing'} on rank {rank}",
            )


def _first_without(lines: Sequence[str], others: Sequence[str]) -> str:
    """Return the first line that the others lack, or an empty one."""
    known = set(others)
    return next((line for line in lines if line not in known), "")


def _without_parts(node: Any) -> Any:
    """Return a tree without the vectors of which each rank holds a part of its own."""
    if isinstance(node, Shard):
        return ()
    below = tree.children(node)
    return node if below is None else {segment: _without_parts(child) for segment, child in below}


def _gathered(array: mx.array, group: mx.distributed.Group) -> Any:
    """Return the array of each rank, as lists."""
    return mx.distributed.all_gather(array[None], group=group).tolist()


def _hash(leaf: mx.array) -> mx.array:
    """Return a hash of the bits of an array, uint32 [2]; it is computed before this returns."""
    words = leaf.reshape(-1).view(_WORDS[leaf.dtype.size])
    total = mx.zeros(2, mx.uint32)
    for begin in range(0, words.size, _CHUNK):
        part = words[begin : begin + _CHUNK].astype(mx.uint32)
        places = mx.arange(begin, begin + part.size).astype(mx.uint32) * _word(0x9E3779B9)
        mixed = [_mixed(part ^ places), _mixed((part + _word(0x7F4A7C15)) ^ ~places)]
        total = total + mx.stack([each.sum() for each in mixed]).astype(mx.uint32)
        mx.eval(total)
    return total


def _mixed(x: mx.array) -> mx.array:
    """Spread each bit over the word, so that differences do not cancel in a sum."""
    x = (x ^ (x >> 16)) * _word(0x85EBCA6B)
    x = (x ^ (x >> 13)) * _word(0xC2B2AE35)
    return x ^ (x >> 16)


def _word(value: int) -> mx.array:
    return mx.array(value, mx.uint32)
