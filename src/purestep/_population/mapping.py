"""Functions of trees, mapped over a first axis of members, all at a time or in chunks."""

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.tracing import custom, ordering


def mapped(
    caller: str,
    fn: Callable[..., Any],
    count: int,
    chunk: int | None,
    mapped_args: list[Any],
    shared_args: list[Any],
) -> Any:
    """Return `fn(*mapped_args, *shared_args)` for each of `count` members, stacked along a first axis.

    Args:
        caller: the name of the public function, for errors.
        fn: a function of trees that returns a tree of arrays.
        count: the number of members.
        chunk: members at a time; a chunk starts after the one before has ended. `None` is all. With 1, the
            function is called for each member without `mx.vmap`.
        mapped_args: trees whose arrays have a first axis of members.
        shared_args: trees that all members share.
    """
    if chunk is None or chunk >= count > 1:
        return _vmapped(caller, fn, mapped_args, shared_args)
    results: list[Any] = []
    for start in range(0, count, chunk):
        rows = tree.map(lambda leaf, start=start: leaf[start : start + chunk], mapped_args)
        if results:  # so that the activations of one chunk are in memory at a time
            ordered = ordering.after(tree.leaves(rows), tree.leaves(results[-1]))
            rows = _constant_keys(tree.unflatten(rows, ordered))
        if chunk > 1:
            results.append(_vmapped(caller, fn, rows, shared_args))
            continue
        result = fn(*tree.map(lambda leaf: leaf[0], rows), *shared_args)
        _check_arrays(caller, result)
        results.append(tree.map(lambda leaf: leaf[None], result))
    return tree.map(lambda *parts: mx.concatenate(list(parts)), *results)


def _constant_keys(rows: Any) -> Any:
    """Return the trees without gradients for integers, of which MLX's random numbers have none."""
    return tree.map(lambda x: x if mx.issubdtype(x.dtype, mx.floating) else mx.stop_gradient(x), rows)


def _vmapped(caller: str, fn: Callable[..., Any], mapped_args: Any, shared_args: Any) -> Any:
    returned: list[Any] = []

    # Lists of arrays: `mx.vmap` refuses `None`, and drops containers without arrays.
    def flat(rows: list[mx.array], shared: list[mx.array]) -> list[mx.array]:
        result = fn(*tree.unflatten(mapped_args, rows), *tree.unflatten(shared_args, shared))
        _check_arrays(caller, result)
        returned[:] = [result]
        return tree.leaves(result)

    found = _differentiable(caller, flat, tree.leaves(mapped_args), tree.leaves(shared_args))
    (like,) = returned
    return tree.unflatten(like, found)


def _differentiable(
    caller: str,
    flat: Callable[[list[mx.array], list[mx.array]], list[mx.array]],
    rows: list[mx.array],
    shared: list[mx.array],
) -> list[mx.array]:
    """Return the results for all members; their gradient is that of each member.

    Under `mx.vmap`, MLX replaces a function that defines its own gradient by its operations. So the gradient
    is taken first, and then mapped.
    """
    count, differentiated = len(rows), scalars.is_differentiated()

    def forward(*arrays: mx.array) -> list[mx.array]:
        return _over(caller, flat, (0, None), list(arrays[:count]), list(arrays[count:]))

    if custom.is_capturing():
        return forward(*rows, *shared)
    function: Any = custom.custom_function(forward)

    @function.vjp
    def _(primals: Any, cotangents: Any, _: Any) -> list[mx.array]:
        given = _listed(primals)

        def one(rows: list[mx.array], shared: list[mx.array], cotangents: list[mx.array]) -> list[mx.array]:
            return ordering.gradients(
                lambda arrays: flat(list(arrays[:count]), list(arrays[count:])), [*rows, *shared], cotangents
            )

        with scalars.differentiated(differentiated):  # as when the step was called
            found = _over(caller, one, (0, None, 0), given[:count], given[count:], _listed(cotangents))
        return found[:count] + [each.sum(axis=0) for each in found[count:]]

    return list(function(*rows, *shared))


def _listed(arrays: Any) -> list[mx.array]:
    return list(arrays) if isinstance(arrays, (tuple, list)) else [arrays]


def _over(
    caller: str, fn: Callable[..., list[mx.array]], axes: tuple[int | None, ...], *arguments: list[mx.array]
) -> list[mx.array]:
    """Return `mx.vmap` of a function of lists of arrays."""
    try:
        over: Any = mx.vmap(fn, in_axes=axes)
        # A captured graph has no functions of single members: `mx.vmap` replaces them by plain operations.
        with scalars.over_members(), custom.paused():
            return list(over(*arguments))
    except (ValueError, RuntimeError) as error:
        reworded = _reworded(caller, error)
        if reworded is None:
            raise
        raise reworded from error


def _check_arrays(caller: str, result: Any) -> None:
    for path, leaf in tree.items(result):
        if not isinstance(leaf, mx.array):
            where = path or "a result"
            kind = f"the Python number {leaf}" if checks.is_number(leaf) else f"a {type(leaf).__name__}"
            raise TypeError(f"{caller}: step must return arrays, got {kind} at {where}")


def _reworded(caller: str, error: Exception) -> Exception | None:
    """Return a clearer error for an operation that MLX cannot map, or `None` for other errors."""
    said = str(error)
    found = re.search(r"\[Primitive::vmap\] Not implemented for (\w+)", said) or re.search(
        r"\[(\w+)::vmap\]", said
    )
    if found is None:
        return None
    # `compiled` recognizes an error about a CustomKernel by this name, and traces without such kernels.
    rule = f"step uses {found[1]}, which MLX cannot map over members"
    return ValueError(f"{caller}: {rule}; pass chunk=1, which makes one member after the other")
