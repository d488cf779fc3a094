"""Hyperparameters in the state: injected, read, and changed between steps without a retrace."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.core.scheduled import called


class InjectHyperparamsState(NamedTuple):
    """State of a transform made by `inject_hyperparams`.

    Attributes:
        count: 0-d int32, the number of updates made.
        hyperparams: a dict from name to 0-d array: the values of the last update, or after `init` those of
            the first. The dtype is float32 or `hyperparam_dtype`.
        hyperparams_states: a dict whose keys are the names that follow a schedule; its values are `()`.
        inner_state: the state of the transform that was made.
    """

    count: mx.array
    hyperparams: dict[str, mx.array]
    hyperparams_states: dict[str, tuple[()]]
    inner_state: Tree


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransform],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: mx.Dtype | None = None,
) -> Callable[..., GradientTransform]:
    """Store a factory's numeric arguments in the state, and let each of them follow a schedule.

    Call the returned function with the arguments of `inner_factory`. A number becomes an array in
    `state.hyperparams`. A schedule is evaluated at every update, with the number of earlier updates as its
    count.

    The factory is called again at every update, with arrays, so it must not branch on them in Python.
    Arguments that must stay Python numbers, such as integers, go into `static_args`.

    Differences from optax:

    1. Only the arguments of the call are injected. A default that is not passed stays a Python number.
    2. The arrays are float32, or `hyperparam_dtype`. In optax they have the dtype of the first parameter.
    3. A schedule is a function of the count alone: stateful schedules are not supported. As in optax, every
       callable argument that `static_args` does not name is a schedule.

    Args:
        inner_factory: a function that returns a transform, such as `optimizers.adamw`.
        static_args: the names of arguments that are passed on unchanged.
        hyperparam_dtype: the dtype of the arrays; `None` is float32.

    >>> from purestep.transforms import add_decayed_weights
    >>> transform = inject_hyperparams(add_decayed_weights)(weight_decay=lambda count: 0.1 * (count + 1))
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(0.0)}, state, params)
    ...     print(updates["w"], state.hyperparams)
    array(0.1, dtype=float32) {'weight_decay': array(0.1, dtype=float32)}
    array(0.2, dtype=float32) {'weight_decay': array(0.2, dtype=float32)}
    """
    checks.function(_INJECT, "inner_factory", inner_factory)
    dtype = hyperparam_dtype or mx.float32
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    signature = inspect.signature(inner_factory)
    unknown = static - set(signature.parameters)
    if unknown:
        raise checks.error(_INJECT, f"static_args names no argument of inner_factory: {sorted(unknown)}")

    def make(*args: Any, **kwargs: Any) -> GradientTransform:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            inner_factory(*args, **kwargs)  # raises its own error, which names the factory
            raise
        return _injected(_divided(inner_factory, bound, static, dtype))

    return make


_INJECT = "inject_hyperparams"


class _Call(NamedTuple):
    """A call of a factory, with those of its arguments that are numbers and those that are schedules."""

    factory: Callable[..., GradientTransform]
    bound: inspect.BoundArguments
    numbers: dict[str, Any]
    schedules: dict[str, Callable[[mx.array], Any]]
    dtype: mx.Dtype

    def build(self, hyperparams: Mapping[str, Any]) -> GradientTransform:
        """Call the factory with these values of its hyperparameters."""
        arguments = {**self.bound.arguments, **hyperparams}
        made = inspect.BoundArguments(self.bound.signature, arguments)  # type: ignore[arg-type]
        return self.factory(*made.args, **made.kwargs)

    def values_at(self, count: mx.array, numbers: Mapping[str, Any]) -> dict[str, mx.array]:
        """Return these numbers and the schedules' values at a count, as 0-d arrays."""
        scheduled = {name: called(_INJECT, name, fn, count) for name, fn in self.schedules.items()}
        return {name: _as_array(name, value, self.dtype) for name, value in {**numbers, **scheduled}.items()}


def _divided(
    factory: Callable[..., GradientTransform],
    bound: inspect.BoundArguments,
    static: set[str],
    dtype: mx.Dtype,
) -> _Call:
    numbers, schedules = {}, {}
    for name, value in bound.arguments.items():
        if name in static or isinstance(value, bool):
            continue
        if callable(value):
            schedules[name] = value
        elif checks.is_number(value) or (isinstance(value, mx.array) and value.ndim == 0):
            numbers[name] = checks.number(_INJECT, name, value)
    return _Call(factory, bound, numbers, schedules, dtype)


def _as_array(name: str, value: Any, dtype: mx.Dtype) -> mx.array:
    if not (isinstance(value, mx.array) or checks.is_number(value)):
        raise TypeError(
            f"{_INJECT}: {name} as a schedule must return a number or a 0-d array, got {value!r}; "
            "if it is not a schedule, name it in static_args"
        )
    value = scalars.float32(value).astype(dtype)
    if value.ndim != 0:
        raise checks.error(_INJECT, f"{name} must be 0-d, got shape {value.shape}")
    return value


def _injected(call: _Call) -> GradientTransform:
    """Return the transform that builds the factory's transform anew at every update."""
    # The first call passes Python numbers, which the factory can check; it cannot check arrays.
    start = call.values_at(mx.array(0, mx.int32), {})
    check_transform(_INJECT, "what inner_factory returns", call.build({**call.numbers, **start}))

    def init(params: Params) -> InjectHyperparamsState:
        count = mx.array(0, mx.int32)
        hyperparams = call.values_at(count, call.numbers)
        inner_state = call.build(hyperparams).init(params)
        return InjectHyperparamsState(count, hyperparams, dict.fromkeys(call.schedules, ()), inner_state)

    def update(
        updates: Updates, state: InjectHyperparamsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, InjectHyperparamsState]:
        kept = {name: state.hyperparams[name] for name in call.numbers}
        hyperparams = call.values_at(state.count, kept)
        inner = call.build(hyperparams)
        # `init` writes a learning rate into the inner state, so a new rate is taken from a new inner state.
        fresh = inner.init(updates if params is None else params)
        inner_state = _replace(state.inner_state, dict(tree.fields(fresh, "learning_rate")))
        out, inner_state = taking_extra(inner)(updates, inner_state, params, **extra)
        new = InjectHyperparamsState(
            scalars.increment(state.count), hyperparams, state.hyperparams_states, inner_state
        )
        return out, new

    return checked(_INJECT, init, update, elementwise=True)


def hyperparameters(state: Tree) -> dict[str, mx.array]:
    """Return every named hyperparameter in an optimizer state, or in a whole `TrainState`.

    These are the fields `learning_rate` of the transforms' states, and the values of `inject_hyperparams`.
    The key is the name if it occurs once, else its path. If a state's class has an attribute
    `scheduled = True`, its rate is read-only: `set_hyperparameters` refuses it.

    >>> from purestep import chain
    >>> from purestep.transforms import scale_by_learning_rate
    >>> hyperparameters(scale_by_learning_rate(0.1).init({}))
    {'learning_rate': array(0.1, dtype=float32)}
    >>> both = chain(scale_by_learning_rate(0.1), scale_by_learning_rate(0.2))
    >>> list(hyperparameters(both.init({})))
    ['0.learning_rate', '1.learning_rate']
    """
    return {key: value for key, (_, value, _) in _find(state).items()}


def set_hyperparameters(
    state: Tree, values: Mapping[str, float | mx.array] | None = None, /, **named: float | mx.array
) -> Tree:
    """Return the state with other values for some of its hyperparameters.

    Dtypes and shapes are unchanged, so a compiled step does not retrace.

    Args:
        state: an optimizer state or a whole `TrainState`; it is not changed.
        values: a dict from the keys of `hyperparameters(state)` to new values. Keys that are paths can
            only be given here.
        named: the same, as keyword arguments.

    Raises:
        ValueError: for a name that the state does not have or has more than once; for a hyperparameter
            that follows a schedule, which would overwrite the value at the next update; for a Python number
            that is not finite; and for a negative Python number as a learning rate.

    >>> from purestep.transforms import scale_by_learning_rate
    >>> transform = scale_by_learning_rate(0.1)
    >>> state = set_hyperparameters(transform.init({"w": mx.array(0.0)}), learning_rate=0.5)
    >>> transform.update({"w": mx.array(1.0)}, state)[0]
    {'w': array(-0.5, dtype=float32)}
    """
    caller = "set_hyperparameters"
    found = _find(state)
    new: dict[str, mx.array] = {}
    for key, value in {**(values or {}), **named}.items():
        if key not in found:
            several = [k for k, (path, _, _) in found.items() if path.rpartition(".")[2] == key]
            if several:
                raise checks.error(caller, f"{key} is ambiguous: use one of {', '.join(several)}")
            has = ", ".join(found) or "no hyperparameters"
            raise checks.error(caller, f"{key} is not in the state, which has {has}")
        path, old, scheduled = found[key]
        if scheduled:
            raise checks.error(caller, f"{key} follows a schedule, which would overwrite it")
        new[path] = _checked(caller, key, value, old)
    return _replace(state, new)


def constants(state: Tree) -> dict[str, tuple[str, mx.array]]:
    """Return the path and value of each hyperparameter without a schedule, by the keys of `hyperparameters`.

    >>> from purestep.transforms import scale_by_learning_rate
    >>> constants((scale_by_learning_rate(0.1).init({}), scale_by_learning_rate(lambda count: 0.2).init({})))
    {'0.learning_rate': ('0.learning_rate', array(0.1, dtype=float32))}
    """
    return {key: (path, value) for key, (path, value, scheduled) in _find(state).items() if not scheduled}


def _checked(caller: str, key: str, value: Any, old: mx.array) -> mx.array:
    if isinstance(value, mx.array):
        if value.shape not in ((), old.shape):
            raise checks.error(caller, f"{key} must have shape {old.shape}, got {value.shape}")
        return mx.broadcast_to(value.astype(old.dtype), old.shape)
    value = checks.number(caller, key, value, least=0 if key.endswith("learning_rate") else None)
    return mx.full(old.shape, value, old.dtype)


def _find(state: Tree) -> dict[str, tuple[str, mx.array, bool]]:
    """Return key -> (path, value, whether it follows a schedule)."""
    whole = tree.is_namedtuple(state) and "opt_state" in state._fields
    found = list(_held("opt_state", state.opt_state) if whole else _held("", state))
    names = [name for name, _ in found]
    return {name if names.count(name) == 1 else what[0]: what for name, what in found}


def _held(path: str, node: Any) -> Iterator[tuple[str, tuple[str, mx.array, bool]]]:
    if isinstance(node, InjectHyperparamsState):
        # The rates in its inner state are copies of these values.
        below = tree.join(path, "hyperparams")
        for name, value in node.hyperparams.items():
            yield name, (tree.join(below, tree.key_segment(name)), value, name in node.hyperparams_states)
        return
    for segment, child in tree.children(node) or []:
        at = tree.join(path, segment)
        if segment == "learning_rate" and tree.is_namedtuple(node) and isinstance(child, mx.array):
            yield segment, (at, child, getattr(node, "scheduled", False))
        yield from _held(at, child)


def _replace(state: Tree, values: Mapping[str, Any]) -> Tree:
    return tree.map_with_path(lambda path, leaf: values.get(path, leaf), state) if values else state
