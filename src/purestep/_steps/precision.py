"""Mixed precision: a loss function that computes in a reduced dtype on float32 parameters."""

from collections.abc import Sequence
from functools import wraps
from typing import Any, TypeVar

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.packing import uniform, unpacked
from purestep._core.tree.patterns import matched, shown_paths
from purestep._core.types import LossFn, Tree
from purestep._steps.core.objective import Narrowed
from purestep._transforms.core.unpacking import accepting, accepts_packed

LossFnT = TypeVar("LossFnT", bound=LossFn)
_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}


def compute_in(
    loss_fn: LossFnT, dtype: mx.Dtype, *, keep: str | Sequence[str] = (), inputs: str | Sequence[str] = ()
) -> LossFnT:
    """Return a loss function that runs `loss_fn` with its parameters cast to `dtype`.

    The parameters of the state, their gradients and the optimizer stay float32 ("master weights"). Only the
    forward and backward pass see the cast copies. `functional` sums the gradients of embeddings, biases and
    norms in float32, and the losses of `ps.losses` are computed in float32.

    An operation on a bfloat16 and a float32 array gives float32. Therefore cast also the floating-point
    arrays of the batch that the model reads, with `inputs`. Targets and weights stay as they are. For float16
    use `loss_scaled_step`, since small gradients become 0 in float16.

    Args:
        loss_fn: as in `train_step`; also a loss function with a model_state, which is not cast.
        dtype: `mx.bfloat16`, `mx.float16` or `mx.float32`.
        keep: patterns of the parameters that stay in their dtype, such as `"*.router.*"`; `*` is any text.
        inputs: patterns of the arrays of the batch to cast, such as `"images"`.

    Raises:
        ValueError: for another dtype. On the first call, for a pattern that matches nothing; if no parameter
            is left to cast; if a pattern of `inputs` matches an array that is not floating-point.

    Reference: Micikevicius et al., arXiv:1710.03740.

    >>> import purestep as ps
    >>> def loss_fn(params, batch, rng):
    ...     assert params["w"].dtype == mx.bfloat16
    ...     return ps.Mean.of(mx.square(params["w"] * batch["x"] - batch["y"]).astype(mx.float32))
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step = ps.train_step(compute_in(loss_fn, mx.bfloat16, inputs="x"), transform)
    >>> step(state, {"x": mx.array([1.0]), "y": mx.array([3.0])})[0].params
    {'w': array(3, dtype=float32)}
    """
    caller = "compute_in"
    checks.function(caller, "loss_fn", loss_fn)
    if dtype not in _DTYPES.values():
        raise checks.error(caller, f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    read = (inputs,) if isinstance(inputs, str) else tuple(inputs)

    call: Any = loss_fn

    @wraps(call)
    def on_cast(params: Any, *rest: Any) -> Any:
        params = params if accepts_packed(call) else unpacked(params)
        if read:
            *model_state, batch, rng = rest
            rest = (*model_state, _cast_inputs(batch, dtype, read), rng)
        return call(params, *rest)

    @wraps(call)
    def computed(params: Any, *rest: Any) -> Any:
        return on_cast(_cast_params(params, dtype, kept), *rest)

    if accepts_packed(call):
        accepting(on_cast)
    # It takes the vectors of `packed` itself, so that each is cast once and its gradient is a vector too.
    result: Any = accepting(computed)
    result.narrowed = Narrowed(result, lambda params: _cast_params(params, dtype, kept), on_cast)
    return result


def _cast_params(params: Tree, dtype: mx.Dtype, keep: tuple[str, ...]) -> Tree:
    vectors, params = params, unpacked(params)
    floating = [path for path, leaf in tree.items(params) if _is_floating(leaf)]
    kept = matched("compute_in", keep, tree.paths(params))
    if floating and kept.issuperset(floating):
        raise checks.error("compute_in", f"keep must leave a parameter to cast, got {shown_paths(floating)}")
    chosen = tree.map_with_path(lambda path, x: _is_floating(x) and path not in kept, params)
    try:
        chosen = uniform(chosen, vectors)
    except ValueError:  # a vector of which only a part is cast
        vectors = params
    return tree.map(lambda x, cast: x.astype(dtype) if cast else x, vectors, chosen)


def _cast_inputs(batch: Tree, dtype: mx.Dtype, patterns: tuple[str, ...]) -> Tree:
    chosen = matched("compute_in", patterns, tree.paths(batch))

    def cast(path: str, x: mx.array) -> mx.array:
        if path not in chosen:
            return x
        if not _is_floating(x):
            raise checks.error("compute_in", f"inputs must be floating-point, got {x.dtype} for batch.{path}")
        return x.astype(dtype)

    return tree.map_with_path(cast, batch)


def _is_floating(x: Any) -> bool:
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)
