"""A population as a value: states of the same structure, stacked along a first axis of members."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar

import mlx.core as mx

from purestep._core import checks, tree
from purestep._steps.state import TrainState, check_arrays
from purestep._transforms.wrappers.hyperparameters import set_hyperparameters

State = TypeVar("State")


def create(
    make: Callable[[int], State],
    seeds: Iterable[int],
    **hyperparameters: Sequence[float] | mx.array | float,
) -> State:
    """Return a population with one member for each seed.

    Args:
        make: `make(seed) -> state`: the state of one member, such as
            `lambda seed: ps.TrainState.create(params, transform, seed=seed)`.
        seeds: one seed for each member. Members with the same seed draw the same random numbers.
        hyperparameters: values by the names of `ps.hyperparameters(state)`, such as `learning_rate`: one for
            each member in order, or one for all.

    Returns:
        A state whose arrays have a new first axis, of members.

    Raises:
        TypeError: if `seeds` or the values of a hyperparameter are not a list or another ordered iterable.
        ValueError: if there is no seed; if the states of two members differ in structure, a shape or a dtype,
            with the path; if a hyperparameter has another number of values than there are members, is not in
            the state, or is a negative learning rate.

    >>> import purestep as ps
    >>> transform = ps.optimizers.sgd(0.1)
    >>> make = lambda seed: ps.TrainState.create({"w": mx.zeros(3)}, transform, seed=seed)
    >>> states = create(make, range(2), learning_rate=[0.1, 0.5])
    >>> states.params["w"].shape, ps.hyperparameters(states)
    ((2, 3), {'learning_rate': array([0.1, 0.5], dtype=float32)})
    """
    caller = "populations.create"
    checks.function(caller, "make", make)
    states = [make(seed) for seed in _listed(caller, "seeds", seeds)]
    if not states:
        raise checks.error(caller, "seeds must have at least one seed, got none")
    population = _stacked(caller, states)
    return with_hyperparameters(caller, population, len(states), hyperparameters)


def with_hyperparameters(caller: str, states: State, count: int, values: dict[str, Any]) -> State:
    """Return a population with other values of some hyperparameters; check the number of values first."""
    given = {}
    for name, value in values.items():
        if checks.is_number(value):
            given[name] = value
            continue
        if not isinstance(value, mx.array):
            least = 0 if name.endswith("learning_rate") else None  # as `set_hyperparameters`
            listed = enumerate(_listed(caller, name, value))
            value = mx.array([checks.number(caller, f"{name}.{i}", each, least=least) for i, each in listed])
        if value.shape not in ((), (count,)):
            rule = f"{name} must have one value for each of the {count} members"
            raise checks.error(caller, f"{rule}, got shape {value.shape}")
        given[name] = value
    if not given:
        return states
    try:
        return set_hyperparameters(states, given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{caller}: {str(error).removeprefix('set_hyperparameters: ')}") from None


def _listed(caller: str, name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
        raise TypeError(
            f"{caller}: {name} must be a list of numbers, one for each member, got {checks.shown(value)}"
        )
    return list(value)


def stacked(states: Iterable[State]) -> State:
    """Return the population of these states.

    Args:
        states: at least one state; all have the same structure, shapes and dtypes.

    Returns:
        A state whose arrays have a new first axis, of members. `members` is the inverse, bit for bit.

    Raises:
        ValueError: for no state, or for a state that differs from the first; with the path.

    >>> import purestep as ps
    >>> transform = ps.optimizers.sgd(0.1)
    >>> states = stacked(ps.TrainState.create({"w": mx.zeros(3)}, transform, seed=i) for i in range(4))
    >>> states.params["w"].shape, states.step.shape
    ((4, 3), (4,))
    """
    caller = "populations.stacked"
    one: Any = states  # a named tuple is one state, whose fields are not states
    if tree.is_namedtuple(one) or isinstance(one, (Mapping, mx.array)) or not isinstance(one, Iterable):
        raise TypeError(f"{caller}: states must be a list of states, got one {type(states).__name__}")
    given = list(states)
    if not given:
        raise checks.error(caller, "states must have at least one state, got none")
    return _stacked(caller, given)


def _stacked(caller: str, states: list[State]) -> State:
    for index, state in enumerate(states):
        check_arrays(caller, f"states.{index}", state)
        if not tree.alike(state, states[0]):
            named = f"states.{index}"
            lines = tree.differences(tree.spec(state), tree.spec(states[0]), named, "states.0")
            raise checks.error(caller, f"states must be alike: {'; '.join(lines) or 'other containers'}")
    return tree.map(lambda *leaves: mx.stack(list(leaves)), *states)


def size(states: Any) -> int:
    """Return the number of members of a population.

    Raises:
        ValueError: if the first axes of its arrays differ, as in a state of one member; with the path.

    >>> size({"w": mx.zeros((4, 3)), "step": mx.zeros(4)})
    4
    """
    return count_of("populations.size", "states", states)


def count_of(caller: str, name: str, states: Any) -> int:
    """Return the length of the first axis of every array; refuse arrays that differ in it."""
    check_arrays(caller, name, states)
    items = tree.items(states)
    if not items:
        raise checks.error(caller, f"{name} must hold at least one array, got none")
    if isinstance(states, TrainState):  # the parameters of a single state may happen to fit
        items.sort(key=lambda item: item[0] != "step")
    count: int | None = None
    first = ""
    for path, leaf in items:
        shown = tree.join(name, path)
        if leaf.ndim == 0:
            rule = f"{shown} must have a first axis of members, got shape ()"
            raise checks.error(caller, f"{rule}: {name} must be a population, from populations.stacked")
        if count is None:
            count, first = leaf.shape[0], shown
        elif leaf.shape[0] != count:
            rule = f"{shown} must have one row for each of the {count} members that {first} has"
            raise checks.error(caller, f"{rule}, got shape {leaf.shape}")
    assert count is not None
    if not count:
        raise checks.error(caller, f"{name} must have at least one member, got none: {first} is empty")
    return count


def member(states: State, index: int) -> State:
    """Return one member as an ordinary state, with the structure, shapes and dtypes of a single run.

    Args:
        states: a population.
        index: of the member; negative numbers count from the end.

    Raises:
        ValueError: for an index out of range.

    >>> import purestep as ps
    >>> transform = ps.optimizers.sgd(0.1)
    >>> states = stacked(ps.TrainState.create({"w": mx.zeros(3)}, transform, seed=i) for i in range(4))
    >>> member(states, 2).params["w"].shape
    (3,)
    """
    caller = "populations.member"
    count = count_of(caller, "states", states)
    index = checks.integer(caller, "index", index)
    if not -count <= index < count:
        raise checks.error(caller, f"index must be in [{-count}, {count}), got {index}")
    return tree.map(lambda leaf: leaf[index], states)


def members(states: State) -> list[State]:
    """Return all members as ordinary states; `stacked` is the inverse, bit for bit.

    >>> members({"w": mx.array([1.0, 2.0])})
    [{'w': array(1, dtype=float32)}, {'w': array(2, dtype=float32)}]
    """
    count = count_of("populations.members", "states", states)
    return [tree.map(lambda leaf, index=index: leaf[index], states) for index in range(count)]
