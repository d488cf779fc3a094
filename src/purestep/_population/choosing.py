"""Select, replace and perturb members: pure functions that wait for no device."""

from collections.abc import Sequence
from typing import Any, TypeVar

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.rng import check_key
from purestep._population.members import count_of
from purestep._steps.state import TrainState
from purestep._transforms.wrappers.hyperparameters import hyperparameters, set_hyperparameters

State = TypeVar("State")


def select(states: State, indices: mx.array | Sequence[int]) -> State:
    """Return the population of some members, bit for bit.

    A member may be taken more than once; its copies then have the same random key.

    Args:
        states: a population.
        indices: integers [kept], each in [0, members). An array is not read: an index out of range gives an
            undefined member. A list is checked.

    Raises:
        TypeError, ValueError: for indices of another type or shape, a list with an index out of range, or no
            index.

    >>> select({"w": mx.array([1.0, 2.0, 3.0])}, [2, 0])
    {'w': array([3, 1], dtype=float32)}
    """
    caller = "populations.select"
    rows = _indices(caller, "indices", indices, count_of(caller, "states", states))
    if not rows.size:
        raise checks.error(caller, "indices must keep at least one member, got none")
    return tree.map(lambda leaf: leaf[rows], states)


def replace(states: State, indices: mx.array | Sequence[int], sources: mx.array | Sequence[int]) -> State:
    """Return the population in which some members are copies of others.

    Member `indices[i]` becomes member `sources[i]`: parameters, optimizer state, hyperparameters and step
    counter. A `TrainState` keeps its own random key, so that a copy draws other numbers than its source.

    Args:
        states: a population.
        indices: integers [replaced], different from each other.
        sources: integers [replaced].

    Raises:
        TypeError, ValueError: as `select`; also if the two have different lengths, or a list of `indices`
            has the same member twice. No index is allowed: the population is then unchanged.

    >>> replace({"w": mx.array([1.0, 2.0, 3.0])}, [0], [2])
    {'w': array([3, 2, 3], dtype=float32)}
    """
    caller = "populations.replace"
    count = count_of(caller, "states", states)
    to = _indices(caller, "indices", indices, count)
    of = _indices(caller, "sources", sources, count)
    if to.shape != of.shape:
        raise checks.error(
            caller, f"indices and sources must have the same length, got {to.size} and {of.size}"
        )
    if not isinstance(indices, mx.array) and len(set(indices)) < len(indices):
        raise checks.error(caller, f"indices must differ from each other, got {list(indices)}")
    if not to.size:
        return states
    origin = mx.arange(count)
    origin[to] = of.astype(origin.dtype)
    taken: Any = tree.map(lambda leaf: leaf[origin], states)
    return taken._replace(rng=states.rng) if isinstance(states, TrainState) else taken


def ranked(scores: mx.array, *, highest: bool = False) -> mx.array:
    """Return the indices of all members, the best first. A NaN ranks last, and an infinite score before it.

    Args:
        scores: [members], such as losses. A lower score is better, unless `highest` is true.
        highest: whether a higher score is better.

    Returns:
        uint32 [members]. Equal scores stay in their order.

    >>> ranked(mx.array([0.5, float("nan"), 0.1]))
    array([2, 0, 1], dtype=uint32)
    """
    caller = "populations.ranked"
    if not isinstance(scores, mx.array) or scores.ndim != 1:
        got = f"shape {scores.shape}" if isinstance(scores, mx.array) else type(scores).__name__
        raise checks.error(caller, f"scores must be an array of shape [members], got {got}")
    scores = scores.astype(mx.float32)
    ordered = -scores if highest else scores
    nan = mx.isnan(ordered)
    # Two sorts: an infinite score must rank before a NaN. MLX's sort is not always stable, so each score
    # counts the members before it.
    a, b = ordered[:, None], ordered[None, :]
    index = mx.arange(scores.size)
    both = nan[:, None] & nan[None, :]
    earlier = index[:, None] > index[None, :]
    worse = mx.where(nan[:, None] ^ nan[None, :], nan[:, None], mx.where(both | (a == b), earlier, a > b))
    return mx.argsort(worse.sum(axis=1)).astype(mx.uint32)


def truncated(scores: mx.array, fraction: float = 0.2, *, highest: bool = False) -> tuple[mx.array, mx.array]:
    """Return the worst members and the best, for `replace`: truncation selection.

    Args:
        scores: [members], such as losses; a NaN is the worst score.
        fraction: the part of the members that is replaced, in (0, 0.5]; at least one member, and at most
            half of them.
        highest: whether a higher score is better.

    Returns:
        Two arrays of indices of the same length: the worst members, and the best that take their places.
        The worst member is replaced by the best.

    Reference: Jaderberg et al., population based training, arXiv:1711.09846.

    >>> truncated(mx.array([0.5, 0.9, 0.1, 0.7]), 0.25)
    (array([1], dtype=uint32), array([2], dtype=uint32))
    """
    caller = "populations.truncated"
    fraction = checks.number(caller, "fraction", fraction, above=0, most=0.5)
    order = ranked(scores, highest=highest)
    if order.size < 2:
        raise checks.error(caller, f"scores must have at least 2 members, got {order.size}")
    count = min(max(round(fraction * order.size), 1), order.size // 2)
    return order[::-1][:count], order[:count]


def perturb(
    states: State,
    key: mx.array,
    indices: mx.array | Sequence[int] | None = None,
    **factors: float | tuple[float, ...] | list[float],
) -> State:
    """Return the population with some hyperparameters of some members multiplied by random factors.

    Args:
        states: a population.
        key: uint32 [2], not one that the states hold.
        indices: the members to perturb; `None` is all of them.
        factors: for each hyperparameter, by the names of `ps.hyperparameters(states)`: the factors of which
            each member draws one. `learning_rate=(0.8, 1.25)` multiplies by either. A number `f` above 1
            stands for any factor in [1 / f, f], drawn uniformly in its logarithm.

    Raises:
        TypeError, ValueError: for a name that the states do not have; for a hyperparameter that follows a
            schedule; for factors that are not greater than 0.

    >>> import purestep as ps
    >>> states = ps.transforms.scale_by_learning_rate(0.5).init({})
    >>> states = tree.map(lambda leaf: mx.stack([leaf] * 3), states)
    >>> perturb(states, mx.random.key(0), [1], learning_rate=(2.0,)).learning_rate
    array([0.5, 1, 0.5], dtype=float32)
    """
    caller = "populations.perturb"
    check_key(caller, key)
    count = count_of(caller, "states", states)
    if not factors:
        raise checks.error(caller, "factors must name at least one hyperparameter, got none")
    chosen: mx.array | None = None
    if indices is not None:
        chosen = mx.zeros(count, mx.bool_)
        chosen[_indices(caller, "indices", indices, count)] = True
    found = hyperparameters(states)
    new = {}
    keys = mx.random.split(key, len(factors))
    for own, (name, allowed) in zip(keys, factors.items(), strict=True):
        if name not in found:
            has = ", ".join(found) or "no hyperparameters"
            raise checks.error(caller, f"{name} is not in the state, which has {has}")
        drawn = _factors(caller, name, allowed, count, own)
        drawn = drawn if chosen is None else mx.where(chosen, drawn, 1.0)
        old = found[name]
        drawn = drawn.reshape((count,) + (1,) * (old.ndim - 1))
        new[name] = (old * drawn).astype(old.dtype)
    try:
        return set_hyperparameters(states, new)
    except ValueError as error:
        raise ValueError(f"{caller}: {str(error).removeprefix('set_hyperparameters: ')}") from None


def _factors(caller: str, name: str, allowed: Any, count: int, key: mx.array) -> mx.array:
    if checks.is_number(allowed):
        spread = mx.log(mx.array(checks.number(caller, name, allowed, above=1), mx.float32))
        return mx.exp(mx.random.uniform(-spread, spread, (count,), key=key))
    if not isinstance(allowed, (tuple, list)) or not allowed:
        rule = f"{name} must be a tuple of factors or a number above 1"
        raise TypeError(f"{caller}: {rule}, got {checks.shown(allowed)}")
    choices = mx.array([checks.number(caller, name, each, above=0) for each in allowed], mx.float32)
    return choices[mx.random.randint(0, len(allowed), (count,), key=key)]


def _indices(caller: str, name: str, value: Any, count: int) -> mx.array:
    """Return integers [kept]; a list is checked, an array is not read."""
    if isinstance(value, mx.array):
        if value.ndim != 1 or not mx.issubdtype(value.dtype, mx.integer):
            got = f"{value.dtype} {value.shape}"
            raise checks.error(caller, f"{name} must be integers of shape [kept], got {got}")
        return value
    if not isinstance(value, (list, tuple, range)):
        raise TypeError(f"{caller}: {name} must be a list or an array of integers, got {checks.shown(value)}")
    for position, each in enumerate(value):
        index = checks.integer(caller, f"{name}.{position}", each, least=0)
        if index >= count:
            raise checks.error(
                caller, f"{name}.{position} must be less than {count}, the members, got {index}"
            )
    return mx.array(list(value), mx.uint32)
