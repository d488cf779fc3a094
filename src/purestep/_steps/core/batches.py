"""Checks of batches, and their cuts into microbatches."""

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.tracing import ordering
from purestep._core.types import Batch, Tree
from purestep._steps.state import check_arrays


def check_batch(caller: str, batch: Batch, microbatches: int = 1) -> None:
    """Refuse a batch without data, or one that does not divide into equal microbatches."""
    check_arrays(caller, "batch", batch)
    named = [(tree.join("batch", path), leaf) for path, leaf in tree.items(batch)]
    if not named:
        raise checks.error(caller, "batch must hold at least one array, got none")
    for path, leaf in named:
        if 0 in leaf.shape:
            raise checks.error(caller, f"{path} is empty, got shape {leaf.shape}")
    if microbatches == 1:
        return
    for path, leaf in named:
        if leaf.ndim == 0:
            raise checks.error(
                caller,
                f"{path} is 0-d: microbatches={microbatches} cuts the first axis of every array; "
                "broadcast it to [batch]",
            )
    lengths = {path: leaf.shape[0] for path, leaf in named}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{path} {length}" for path, length in lengths.items())
        raise checks.error(caller, f"the arrays of a batch must share their first axis, got {shown}")
    for path, length in lengths.items():
        if length % microbatches:
            raise checks.error(
                caller,
                f"the first axis of {path} must be divisible by microbatches={microbatches}, got {length}",
            )


def microbatch(batch: Batch, index: int, count: int) -> Batch:
    """Return the microbatch `index` of `count` equal parts along the first axis."""

    def cut(leaf: mx.array) -> mx.array:
        rows = leaf.shape[0] // count
        return leaf[index * rows : (index + 1) * rows]

    return tree.map(cut, batch)


def after(batch: Batch, before: Tree) -> Batch:
    """Return the batch, computed only after `before`.

    Without an order, MLX may run every forward pass before any backward pass, with all activations in memory.
    """
    ordered = ordering.after(tree.leaves(batch), tree.leaves(before))
    batch = tree.unflatten(batch, ordered)
    return tree.map(lambda x: x if mx.issubdtype(x.dtype, mx.floating) else mx.stop_gradient(x), batch)
