"""From an `mlx.nn.Module` to a pure function and its arrays."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks, context, graph, tree
from purestep._core.rng import forbidden, scope
from purestep._core.types import Params, Tree
from purestep._modules import contents, modes
from purestep._modules.contents import Contents
from purestep._modules.copying import UncopyableError, copied
from purestep._modules.early import refuse_bound_checkpoint
from purestep._modules.handles import own
from purestep._modules.privates import private_arrays
from purestep._modules.slots import Slot, check_fits, slots_of, trained_and_held

Apply = Callable[..., Any]


def functional(module: nn.Module, *, discard: str | Sequence[str] = ()) -> tuple[Apply, Params, Tree]:
    """Bridge a module to `(apply, params, model_state)`.

    `params` holds the module's trainable arrays under the names of `module.trainable_parameters()`.
    `model_state` holds its other arrays: frozen weights, running statistics. An array that the module holds
    in several places (tied weights) is one leaf, under its first name, and stays tied. `write_back` puts
    trained arrays into a module again.

    `apply(params, *args, rng=None, model_state=None, train=None, method=None, **kwargs)` runs the module's
    forward pass with those arrays in place of its own. It is a pure function: the module and the arguments
    are left as they were, also when the forward pass raises. The module may be bridged again, changed or
    deleted: apply runs a copy, which does not keep the first weights alive.

    - With `rng`, a key, the module runs in training mode and everything random in it (Dropout) is a
      function of that key. Without it the module runs in evaluation mode. `train=` overrides the mode.
      Parts that were in evaluation mode while others were not (a frozen backbone) stay in it.
    - With `model_state`, apply returns `(out, model_state)`, the state as the forward pass left it.
      Without it, apply returns `out` and uses the arrays the module held when it was bridged.
    - `method` names another entry point than `__call__`: `apply(params, z, method="decode")`.
    - Functions under `mx.checkpoint` or `nn.utils.checkpoint` are recomputed with the arrays, mode and key
      of the call. A function that `mx.checkpoint` decorates at its definition must draw from a key that it is
      given: a `train_step` refuses others, a plain `mx.grad` cannot. As in MLX, gradients flow through what
      they are given as arguments and, for `nn.utils.checkpoint`, through the parameters of its module.

    Args:
        module: any `mlx.nn.Module`; it is read, never changed.
        discard: patterns (`"layers.*._mask"`) of attributes that the forward pass may change without an
            effect on later calls, such as a cache of a mask. Each call starts without the change.

    Raises:
        ValueError: at the call, when training mode is asked for without a key, or in a `train_step` a layer
            asks for the mode and neither is given; when the module draws random numbers without a key; when
            the forward pass changes what no one receives: BatchNorm's statistics without `model_state=`,
            trained arrays, arrays under names with `_`, counters, caches, attributes of plain objects; with
            the path, when params or model_state do not fit the module.
        ValueError: when a module is bridged whose code has imported `checkpoint` from `mlx.core` by name, or
            which holds functions that `mx.compile` or the like made around its arrays.
        TypeError: if `module` is not a module.

    Warns:
        UserWarning: if something in the module, such as a lock, cannot be copied. Apply then runs the module
            itself and puts it back after each call, and the first weights live as long as apply does.

    >>> apply, params, model_state = functional(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)))
    >>> apply(params, mx.ones((3, 4)), rng=mx.random.key(0)).shape
    (3, 2)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"functional: module must be an mlx.nn.Module, got {type(module).__name__}")
    refuse_bound_checkpoint(module)
    slots = slots_of(module)
    trained, held = trained_and_held(module, slots)
    # Copies of the handles, not of the data: writing into the module's arrays does not reach the trees.
    params, model_state = tree.map(copy.copy, trained), tree.map(copy.copy, held)
    bridge = _Bridge(module, slots, params, model_state, (discard,) if isinstance(discard, str) else discard)
    return bridge.apply, params, model_state


class _Bridge:
    """A module, what it held when it was bridged, and how to run it with other arrays.

    A `Scene` of `context`: a function that is recomputed runs with the module's contents of its first run.
    """

    def __init__(
        self,
        module: nn.Module,
        slots: dict[str, list[Slot]],
        params: Params,
        held: Tree,
        discard: Sequence[str],
    ):
        guards: dict[int, Any] = {id(at[0].read()): modes.Guard(path) for path, at in slots.items()}
        resting = modes.held_back(module)
        self._borrowed = False
        twins: dict[int, Any] = {}
        try:
            twins = copied(module, guards)
            ours = twins[id(module)]
            caller = contents.places(ours)
            image = contents.read(caller)
        except UncopyableError as error:
            path, kind = error.args
            warnings.warn(
                f"functional: {path or 'the module'} is a {kind}, which cannot be copied: apply runs the "
                "module itself and puts it back after each call, and its first weights stay in memory",
                UserWarning,
                stacklevel=checks.users_level(),
            )
            self._borrowed, ours = True, module
            caller = contents.places(ours)
            image = _without_arrays(contents.read(caller), guards)
        self._module, self._places, self._image = ours, caller, image
        self._parts = [twins.get(id(part), part) for part in module.modules()]
        self._resting = [twins.get(id(part), part) for part in resting]
        self._slots = {
            path: [Slot(twins.get(id(slot.container), slot.container), slot.key) for slot in held_at]
            for path, held_at in slots.items()
        }
        self._params = {path: leaf.shape for path, leaf in tree.items(params)}
        self._held = {path: leaf.shape for path, leaf in tree.items(held)}
        self._initial, self._discard = held, tuple(discard)
        self._arrays = private_arrays(caller, image)
        # Entry points, each with a mode, whose first call was looked at more closely.
        self._looked: set[tuple[Any, bool]] = set()
        self._watched: dict[str, mx.array] = {}  # the trained arrays, in such a first call
        self._lock = threading.RLock()
        if not self._borrowed:
            for _, attributes in self._image:
                if "_training" in attributes:
                    attributes["_training"] = modes.Guard("the mode")
            contents.write(self._places, self._image)

    def apply(
        self,
        params: Params,
        *args: Any,
        rng: mx.array | None = None,
        model_state: Tree = None,
        train: bool | None = None,
        method: str | Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the forward pass; documented in `functional`."""
        asked = modes.Asked() if rng is None and train is None else None
        train = rng is not None if train is None else bool(train)
        if train and rng is None:
            raise checks.error("apply", "training mode needs a key: pass rng=, or train=False")
        stateful = model_state is not None
        held = model_state if stateful else self._initial
        check_fits("apply", "params", params, self._params, shapes=True)
        check_fits("apply", "model_state", held, self._held, shapes=False)
        given = dict(tree.items(params) + tree.items(held))
        args, kwargs = own(args), own(kwargs)
        noticing = asked is not None and context.current_step() is not None
        with self._in_place(), forbidden("apply") if rng is None else scope(rng):
            handles = {path: copy.copy(array) for path, array in given.items()}
            for path, handle in handles.items():
                for slot in self._slots[path]:
                    slot.write(handle)
            for slot, array in self._arrays:
                slot.write(copy.copy(array))
            modes.set_modes(self._parts, self._resting, asked if noticing else train)
            before = contents.read(self._places)
            first = (method, train) not in self._looked
            self._watched = {path: handles[path] for path in self._params} if first else {}
            with context.scene(self):
                out = self._entry(method)(*args, **kwargs)
            self._check(before, handles, given, held, stateful, first)
            self._looked.add((method, train))
            left = tree.map_with_path(lambda path, _: self._slots[path][0].read(), held)
        if noticing and asked is not None and asked.seen and _is_trained(params):
            raise checks.error(
                "apply",
                "the module has layers that differ in training mode (Dropout, BatchNorm): in a training step "
                "pass rng=, or train=False to evaluate",
            )
        return (out, left) if stateful else out

    def capture(self) -> context.Entry:
        """Return what puts the module's contents of this moment in place again."""
        now = contents.read(self._places)

        @contextmanager
        def again() -> Iterator[None]:
            with self._in_place():
                contents.write(self._places, now)
                with context.scene(self):
                    yield

        return again

    def inspect(self, fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse to recompute a function that uses trained arrays which it is not given.

        MLX gives such arrays a gradient of zero. The function is traced once more, with other arguments, to
        see which of the module's arrays it reaches.
        """
        leaves = tree.leaves((args, kwargs))
        given = {id(leaf) for leaf in leaves}
        watched = {path: array for path, array in self._watched.items() if id(array) not in given}
        if not watched or not all(isinstance(leaf, (mx.array, bool, int, float, str)) for leaf in leaves):
            return
        self._watched, before = {}, self._watched
        args, kwargs = tree.map(_stand_in, (args, kwargs))
        with scope(copy.copy(mx.random.state[0])), self.capture()():  # type: ignore[index]
            reached = graph.used(tree.leaves(fun(*args, **kwargs)), watched)
        self._watched = before
        if reached:
            raise checks.error(
                "apply",
                f"a function under mx.checkpoint uses {', '.join(reached[:3])}, which it is not given, and "
                "whose gradient would be lost: pass the array as an argument, or the module that holds it to "
                "nn.utils.checkpoint",
            )

    def settle(self, given: dict[int, mx.array]) -> None:
        """Put arrays in the places of other handles of them."""
        for places in self._slots.values():
            for slot in places:
                array = slot.container.get(slot.key) if isinstance(slot.container, dict) else slot.read()
                if id(array) in given:
                    slot.write(given[id(array)])

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Run with the module's contents as they were when it was bridged, and put back what it holds now."""
        with self._lock:
            now = contents.read(self._places)
            if self._borrowed:
                contents.write(self._places, self._image)
            try:
                yield
            finally:
                contents.write(self._places, now)

    def _entry(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        if method is None:
            return self._module
        if callable(method):
            return lambda *args, **kwargs: method(self._module, *args, **kwargs)
        found = getattr(self._module, method, None) if isinstance(method, str) else None
        if not callable(found):
            kind = type(self._module).__name__
            raise checks.error("apply", f"method must name a method of {kind}, got {method!r}")
        return found

    def _check(
        self,
        before: Contents,
        handles: dict[str, mx.array],
        given: dict[str, mx.array],
        held: Tree,
        stateful: bool,
        first: bool,
    ) -> None:
        """Refuse a forward pass that changed what nobody receives."""
        state_paths = set(tree.paths(held))
        statistics = []
        for change in contents.changes(self._places, before):
            if any(fnmatchcase(change.path, pattern) for pattern in self._discard):
                continue
            if change.path.rpartition(".")[2] == "_training":
                continue
            if self._first_path(change.path, change.before) in state_paths and isinstance(
                change.after, mx.array
            ):
                statistics.append(change.path)
                continue
            raise checks.error("apply", contents.lost(change, trained=change.path in given))
        if first:  # a property of the module, found on the first call
            self._look_for_writes(handles, given, state_paths, statistics)
        if statistics and not stateful:
            raise checks.error(
                "apply",
                f"the forward pass rewrote {', '.join(sorted(statistics))}, which would be lost: pass "
                "model_state= and take (out, model_state), or run with train=False",
            )

    def _first_path(self, path: str, before: Any) -> str:
        """Return the path of the leaf that a tied place holds."""
        if path in self._slots:
            return path
        for first, places in self._slots.items():
            if len(places) > 1 and any(slot.read() is before for slot in places):
                return first
        return path

    def _look_for_writes(
        self,
        handles: dict[str, mx.array],
        given: dict[str, mx.array],
        state_paths: set[str],
        statistics: list[str],
    ) -> None:
        """Find `array[...] = value`, which changes an array and leaves its handle the same."""
        for path, handle in handles.items():
            if graph.primitives(handle) != graph.primitives(given[path]):
                if path not in state_paths:
                    raise checks.error(
                        "apply", contents.lost(contents.Change(path, handle, handle), trained=True)
                    )
                statistics.append(path)
        for slot, array in self._arrays:
            now = slot.read()
            if isinstance(now, mx.array) and graph.primitives(now) != graph.primitives(array):
                raise checks.error("apply", contents.lost(contents.Change(slot.path, array, now)))


def _without_arrays(image: Contents, guards: dict[int, Any]) -> Contents:
    """Return contents that do not keep the parameters alive."""
    return [
        (
            {key: guards.get(id(x), x) for key, x in items.items()}
            if isinstance(items, dict)
            else items
            if items is None
            else [guards.get(id(x), x) for x in items],
            attributes,
        )
        for items, attributes in image
    ]


def _stand_in(leaf: Any) -> Any:
    return mx.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf


def _is_trained(params: Params) -> bool:
    """Tell whether a training step differentiates the parameters, and not constants, as a reference's are."""
    step = context.current_step()
    if step is None:
        return False
    ours = {id(leaf) for leaf in step.leaves}
    leaves = tree.leaves(params)
    if any(id(leaf) in ours for leaf in leaves):
        return True
    return bool(graph.used(leaves, {str(index): leaf for index, leaf in enumerate(step.leaves)}))
