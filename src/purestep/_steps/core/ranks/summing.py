"""Sums over the processes that compute one step together.

Every process must start the same collective operations in the same order. A graph fixes no order between
operations that do not depend on each other, so each one is made to depend on the one before it.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, cuda, tree
from purestep._core.packing import Packed
from purestep._core.tracing import ordering
from purestep._core.tracing.custom import custom_function, is_capturing, is_exporting, opaque
from purestep._core.types import Metrics, Tree

_LARGE = 1 << 24  # elements; an array of this size is sent as it is, without a copy


class Ranks(NamedTuple):
    """The processes that compute one step together.

    Attributes:
        group: their `mx.distributed.Group`.
        size: their number.
        rank: the number of this process, from 0.
        dtype: the dtype in which gradients are summed.
        sharded: whether each rank updates a part of the parameters.
        scatters: whether the group has `mx.distributed.sum_scatter`.
        agree: compares lines that describe what is summed between the ranks, at the first call, and raises an
            error on every rank if they differ: sums of other sizes would hang or mix numbers up.
    """

    group: mx.distributed.Group
    size: int
    rank: int
    dtype: mx.Dtype = mx.float32
    sharded: bool = False
    scatters: bool = False
    agree: Callable[[Sequence[str]], None] = lambda lines: None


class Chain:
    """The collective operations of one step, each of which starts after the one before it.

    Attributes:
        ranks: the processes.
        last: what the next operation waits for.
    """

    def __init__(self, ranks: Ranks, first: mx.array):
        if is_exporting():  # MLX writes no collective operations
            raise ValueError(
                "export: step must be that of a single process, got one of several; export train_step with "
                "the same loss function and transform, and a whole state"
            )
        self.ranks, self.last = ranks, first

    def sum(self, vector: mx.array) -> mx.array:
        """Return the sum of an array over all ranks, with the same bits on each of them."""
        return self._made(mx.distributed.all_sum, vector, vector.shape)

    def gather(self, vector: mx.array) -> mx.array:
        """Return the vectors of all ranks, one after another."""
        return self._made(
            mx.distributed.all_gather, vector, (self.ranks.size * vector.shape[0], *vector.shape[1:])
        )

    def scatter(self, vector: mx.array) -> mx.array:
        """Return this rank's part of the sum of a vector over all ranks."""
        rows, *rest = vector.shape
        return self._made(mx.distributed.sum_scatter, vector, (rows // self.ranks.size, *rest))

    def _made(self, operation: Callable[..., mx.array], vector: mx.array, shape: tuple[int, ...]) -> mx.array:
        vector = self.after(vector)
        if is_capturing():  # MLX does not describe collective operations
            (self.last,) = opaque("CustomKernel", [vector], [(shape, vector.dtype)])
        else:
            self.last = operation(vector, group=self.ranks.group)
        return self.last

    def after(self, array: mx.array) -> mx.array:
        """Return an array that is computed after the last operation."""
        return ordering.after([_undifferentiable(array)], [self.last])[0]

    def sum_numbers(self, numbers: Sequence[mx.array]) -> list[mx.array]:
        """Return the sums of arrays over all ranks, in float32; all of them are sent together."""
        flat = [number.astype(mx.float32).reshape(-1) for number in numbers]
        total = self.sum(mx.concatenate(flat))
        pieces = mx.split(total, _ends([x.size for x in flat]))
        return [piece.reshape(x.shape) for piece, x in zip(pieces, numbers, strict=True)]

    def average(self, metrics: Metrics) -> Metrics:
        """Return the mean of each metric over all ranks."""
        if not metrics:
            return metrics
        names = sorted(metrics)
        sums = self.sum_numbers([metrics[name] for name in names])
        found = {name: total / self.ranks.size for name, total in zip(names, sums, strict=True)}
        return {name: found[name] for name in metrics}

    def sum_gradients(self, gradients: Tree, share: mx.array, like: Tree) -> Tree:
        """Return the sum over all ranks of gradients times the share of each rank, as it is sent.

        The arrays of one dtype are sent as one vector, and the returned arrays are views of its sum.

        Args:
            gradients: a tree of arrays.
            share: 0-d float32, the weight of this rank as a part of that of all ranks.
            like: the parameters. If they are `Packed`, the sums are too.
        """
        if isinstance(like, Packed) and not isinstance(gradients, Packed):
            vectors = like.layout.pack(gradients, lambda arrays: self.scaled(arrays, share))
            return type(like)(*map(self.sum, vectors))
        found: dict[str, mx.array] = {}
        for paths, arrays in buckets(gradients):
            total = self.sum(self.scaled(arrays, share))
            pieces = mx.split(total, _ends([x.size for x in arrays])) if len(arrays) > 1 else [total]
            for path, piece, array in zip(paths, pieces, arrays, strict=True):
                found[path] = piece.reshape(array.shape)
        return tree.map_with_path(lambda path, _: found[path], gradients)

    def scaled(self, arrays: Sequence[mx.array], share: mx.array) -> mx.array:
        """Return this rank's part of a mean over all ranks, as one vector of the dtype that is sent."""
        # A mean of this size fits into float16; a sum over thousands of tokens may not.
        if cuda.serves(arrays):
            return cuda.joined_and_scaled(arrays, share, self.ranks.dtype)
        return (joined(arrays).astype(mx.float32) * share).astype(self.ranks.dtype)


def _undifferentiable(array: mx.array) -> mx.array:
    """Return the array; refuse a gradient through it. MLX would pass on that of this rank alone."""
    function: Any = custom_function(lambda array: array)

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        if is_capturing():  # a capture computes the gradient of each call, also one that no result needs
            return cotangent
        raise checks.error("data_parallel", "a step of several processes cannot be differentiated")

    @function.vmap
    def _(inputs: mx.array, axes: int) -> tuple[mx.array, int]:
        return inputs, axes

    return function(array)


def buckets(values: Tree) -> list[tuple[list[str], list[mx.array]]]:
    """Return the paths and arrays of a tree, in groups that are sent together.

    The order is that of the paths, because equal dicts may list their keys in another order on another rank.
    """
    groups: dict[str, tuple[list[str], list[mx.array]]] = {}
    for path, leaf in sorted(tree.items(values), key=lambda item: item[0]):
        name = path if leaf.size >= _LARGE else tree.dtype_name(leaf.dtype)
        paths, arrays = groups.setdefault(f"{leaf.size >= _LARGE} {name}", ([], []))
        paths.append(path)
        arrays.append(leaf)
    return list(groups.values())


def joined(arrays: Sequence[mx.array]) -> mx.array:
    """Return arrays of one dtype as one vector."""
    if len(arrays) == 1:
        return arrays[0].reshape(-1)
    return mx.concatenate([x.reshape(-1) for x in arrays])


def _ends(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes))[:-1]
