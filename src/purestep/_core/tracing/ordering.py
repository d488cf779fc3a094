"""The order of evaluation: arrays that are computed after others, and functions recomputed in order.

`mx.checkpoint` drops the activations of a function and recomputes them for its gradient. But MLX evaluates
the whole step as one graph: it may recompute a function long before its gradient is needed, and may pass the
gradient on to earlier functions before those of the parameters are computed. Then the activations of many
functions are in memory together. `gated` recomputes a function only after the gradient of its outputs is
there, and all gradients of its arguments leave it together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.tracing import graph
from purestep._core.tracing.custom import custom_function


def after(arrays: Sequence[mx.array], before: Sequence[mx.array]) -> list[mx.array]:
    """Return arrays that are evaluated only after `before`.

    This works like `mx.depends`, which has no rule for `mx.vmap`. Under `mx.vmap` only the order is lost.
    """
    return _first(len(arrays))(*arrays, *before)


@functools.cache
def _first(count: int) -> Any:
    """Return the function that returns its first `count` arguments, computed after all of them."""
    ordered: Any = custom_function(lambda *given: list(given[:count]))

    @ordered.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return [*cotangents, *(mx.zeros_like(array) for array in primals[count:])]

    @ordered.vmap
    def _(inputs: Any, axes: Any) -> Any:
        mapped = _mapped(inputs, axes)
        return mapped[:count], [0] * count

    return ordered


def before_gradient(value: mx.array, others: Sequence[mx.array]) -> mx.array:
    """Return `value`, whose gradient is computed only after the value itself and `others`.

    Otherwise a loss, which no gradient needs, may be computed last. All that it is computed from, such as
    logits, is in memory until then.
    """
    # The gradient is a product with this 1, and the value is the same bits. No gradient flows to the 1, so
    # that none of the arrays which it waits for is differentiated once more.
    (one,) = after([mx.array(1.0, value.dtype)], [mx.stop_gradient(array) for array in (value, *others)])
    return value * one


def _mapped(arrays: Sequence[mx.array], axes: Sequence[int | None]) -> list[mx.array]:
    """Return the arguments of a `vmap` rule with the mapped axis first, repeated where there is none.

    MLX has no rules for a result of a custom function that is not mapped.
    """
    count = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    return [
        mx.broadcast_to(x[None], (count, *x.shape)) if axis is None else mx.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes, strict=True)
    ]


def gated(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the values and gradients of `fun`, which keeps only its arguments.

    The arguments are trees of arrays and other values; gradients flow to floating-point arrays. As with
    `mx.checkpoint`, no gradient flows to arrays that `fun` reads from elsewhere.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        given = (args, kwargs)
        leaves = tree.leaves(given)
        arrays = [leaf for leaf in leaves if isinstance(leaf, mx.array)]
        shape: list[Any] = []  # of the last result

        def outputs(arrays: Sequence[mx.array]) -> list[mx.array]:
            remaining = list(arrays)
            filled = [remaining.pop(0) if isinstance(leaf, mx.array) else leaf for leaf in leaves]
            again_args, again_kwargs = tree.unflatten(given, filled)
            out = fun(*again_args, **again_kwargs)
            shape[:] = [out]
            return [leaf for leaf in tree.leaves(out) if isinstance(leaf, mx.array)]

        function: Any = custom_function(lambda *arrays: outputs(arrays))

        @function.vjp
        def _(primals: Any, cotangents: Any, _: Any) -> Any:
            return gradients(outputs, _listed(primals), _listed(cotangents))

        found = _listed(function(*arrays))
        (out,) = shape
        shape.clear()
        filled = [found.pop(0) if isinstance(leaf, mx.array) else leaf for leaf in tree.leaves(out)]
        return tree.unflatten(out, filled)

    return call


def gradients(
    outputs: Callable[[Sequence[mx.array]], list[mx.array]],
    primals: list[mx.array],
    cotangents: list[mx.array],
) -> list[mx.array]:
    """Return the gradients of the arguments: computed after the cotangents, and given out together.

    They are zero for arguments that are not floating-point arrays.
    """
    moved = [index for index, array in enumerate(primals) if mx.issubdtype(array.dtype, mx.floating)]
    given = primals
    primals = [
        array if index in moved else mx.stop_gradient(array)
        for index, array in enumerate(after(primals, cotangents))
    ]
    kept: list[int] = []  # floating-point outputs

    def moving(*arrays: mx.array) -> list[mx.array]:
        merged = list(primals)
        for index, array in zip(moved, arrays, strict=True):
            merged[index] = array
        found = outputs(merged)
        kept[:] = [i for i, array in enumerate(found) if mx.issubdtype(array.dtype, mx.floating)]
        return [found[i] for i in kept]

    floating = [c for c in cotangents if mx.issubdtype(c.dtype, mx.floating)]
    try:
        _, found = mx.vjp(moving, [primals[index] for index in moved], floating)
    except ValueError:
        # Some of MLX's GPU operations have no gradient for a mask. An array that is differentiated depends on
        # a Copy operation; a mask that is a constant does not.
        constant = [index for index in moved if "Copy" not in graph.primitives(given[index])]
        if not constant:
            raise
        moved = [index for index in moved if index not in constant]
        primals = [mx.stop_gradient(x) if i in constant else x for i, x in enumerate(primals)]
        _, found = mx.vjp(moving, [primals[index] for index in moved], floating)
    found = after(found, found)
    all_of_them = [mx.zeros_like(array) for array in primals]
    for index, gradient in zip(moved, found, strict=True):
        all_of_them[index] = gradient
    return all_of_them


def _listed(arrays: Any) -> list[mx.array]:
    return list(arrays) if isinstance(arrays, (list, tuple)) else [arrays]
