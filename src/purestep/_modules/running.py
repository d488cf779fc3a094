"""Running a module's forward pass with given arrays, mode and key."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks, tree
from purestep._core.rng import forbidden, scope
from purestep._core.tracing import context, custom, graph
from purestep._core.types import Params, Tree
from purestep._layers import observing, substitutes
from purestep._layers.recording import unwatched, watched
from purestep._modules import contents, effects, modes
from purestep._modules.copying import UncopyableError, copied
from purestep._modules.handles import own
from purestep._modules.recomputing import recomputing
from purestep._modules.slots import Fitting, Slot, named_once, private_arrays


class Runner:
    """A module with the contents that it had when `functional` was called, ready to run with other arrays.

    It is a `Scene` of `context`: a recomputed function runs with the contents of its first run.

    Args:
        module: the module; it is copied if possible.
        slots: its arrays by path.
        params: its trainable arrays.
        held: its other arrays.
        discard: patterns of the attributes whose changes are dropped.
        own_gradients: compute with the functions of `_layers` in place of MLX's.
        recomputed: layers that are recomputed for their gradient.
    """

    def __init__(
        self,
        module: nn.Module,
        slots: dict[str, list[Slot]],
        params: Params,
        held: Tree,
        discard: tuple[str, ...],
        own_gradients: bool,
        recomputed: Iterable[nn.Module] = (),
    ):
        guards: dict[int, Any] = {id(at[0].read()): modes.Guard(path) for path, at in slots.items()}
        resting = modes.held_back(module)
        try:
            twins: dict[int, Any] = (
                copied(module, guards | substitutes.FUNCTIONS, substitutes.CLASSES)
                if own_gradients
                else copied(module, guards)
            )
            self._borrowed = False
        except UncopyableError as error:
            _warn_borrowed(*error.args)
            twins = {}
            self._borrowed = True
        for layer in recomputed:
            if self._borrowed:
                raise checks.error("functional", "remat needs a module that can be copied")
            twin = twins[id(layer)]
            twin.__class__ = recomputing(type(twin))
        self._module = twins.get(id(module), module)
        self._places = contents.places(self._module)
        self._image = contents.read(self._places)
        if self._borrowed:
            self._image = contents.replaced(self._image, guards)
        self._parts = [twins.get(id(part), part) for part in module.modules()]
        self._named = [(path, twins.get(id(part), part)) for path, part in named_once(module)]
        self._resting = [twins.get(id(part), part) for part in resting]
        self._slots = {
            path: [Slot(twins.get(id(slot.container), slot.container), slot.key) for slot in held_at]
            for path, held_at in slots.items()
        }
        self._params = {path: leaf.shape for path, leaf in tree.items(params)}
        self._held = {path: leaf.shape for path, leaf in tree.items(held)}
        self._fit_params = Fitting("apply", "params", self._params, shapes=True)
        self._fit_held = Fitting("apply", "model_state", self._held, shapes=False)
        self._initial, self._discard, self._own_gradients = held, discard, own_gradients
        self._arrays = private_arrays(self._places, self._image)
        self._seen: set[tuple[Any, bool]] = set()  # (entry point, mode) pairs whose first call was checked
        self._watched: dict[str, mx.array] = {}  # the trained arrays, during such a first call
        self._depth = 0  # the number of `_in_place` blocks that are open
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
        """Run the forward pass; `functional` documents the arguments."""
        asked = modes.Asked() if rng is None and train is None else None
        train = rng is not None if train is None else bool(train)
        if train and rng is None:
            raise checks.error("apply", "training mode needs a key: pass rng=, or train=False")
        stateful = model_state is not None
        held = model_state if stateful else self._initial
        given = self._fit_params(params) | self._fit_held(held)
        args = tuple(map(own, args))
        kwargs = {name: own(value) for name, value in kwargs.items()} if kwargs else kwargs
        noticing = asked is not None and context.current_step() is not None
        with self._in_place(), forbidden("apply") if rng is None else scope(rng):
            handles = self._insert(given)
            modes.set_modes(self._parts, self._resting, asked if noticing else train)
            before = contents.read(self._places)
            first = (method, train) not in self._seen
            self._watched = {path: handles[path] for path in self._params} if first else {}
            recorded = observing.current() is not None and _is_trained(params)
            with context.scene(self), watched(self, self._named) if recorded else nullcontext():
                out = self._entry(method)(*args, **kwargs)
            self._check(before, handles, given, stateful, first)
            self._seen.add((method, train))
            left = stateful and tree.map_with_path(lambda path, _: self._slots[path][0].read(), held)
        if noticing and asked is not None and asked.seen and _is_trained(params):
            raise checks.error(
                "apply",
                "the module has layers that depend on the mode (Dropout, BatchNorm): in a training step pass "
                "rng=, or train=False to evaluate",
            )
        return (out, left) if stateful else out

    def capture(self) -> context.Entry:
        """Return a function that makes a context with the module's present contents."""
        now = contents.read(self._places)

        @contextmanager
        def again() -> Iterator[None]:
            with self._in_place():
                contents.write(self._places, now)
                with context.scene(self):
                    yield

        return again

    def inspect(self, fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse to recompute a function that uses trained arrays which are not among its arguments.

        MLX returns a gradient of zero for such arrays. To find them, the function is traced once more, with
        other arguments.
        """
        leaves = tree.leaves((args, kwargs))
        given = {id(leaf) for leaf in leaves}
        watched = {path: array for path, array in self._watched.items() if id(array) not in given}
        if not watched or not all(isinstance(leaf, (mx.array, bool, int, float, str)) for leaf in leaves):
            return
        self._watched, before = {}, self._watched
        args, kwargs = tree.map(_stand_in, (args, kwargs))
        key = copy.copy(mx.random.state[0])  # type: ignore[index]
        with custom.paused(), scope(key), self.capture()(), unwatched():
            outputs = [leaf for leaf in tree.leaves(fun(*args, **kwargs)) if isinstance(leaf, mx.array)]
            reached = graph.used(outputs, watched)
        self._watched = before
        if reached:
            raise checks.error(
                "apply",
                f"a function under mx.checkpoint uses {', '.join(reached[:3])} without receiving it, and its "
                "gradient would be lost: pass the array as an argument, or the module that holds it to "
                "nn.utils.checkpoint",
            )

    def settle(self, given: dict[int, mx.array]) -> None:
        """Replace arrays in the module; `given` maps the `id` of an array to its replacement."""
        for places in self._slots.values():
            for slot in places:
                array = slot.container.get(slot.key) if isinstance(slot.container, dict) else slot.read()
                if id(array) in given:
                    slot.write(given[id(array)])

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Run the block with the contents that `functional` found, and restore the present ones after it."""
        with self._lock:
            now = contents.read(self._places) if self._borrowed or self._depth else self._image
            # A copy has changed since its last call if a caller wrote into a list that it had returned.
            if self._borrowed or not self._depth:
                contents.write(self._places, self._image)
            self._depth += 1
            try:
                with substitutes.substituted() if self._own_gradients else nullcontext():
                    yield
            finally:
                self._depth -= 1
                contents.write(self._places, now)

    def _insert(self, given: dict[str, mx.array]) -> dict[str, mx.array]:
        """Write new handles for the arrays into the module, and return them by path."""
        # `copy.copy` takes three times as long. A model_state may have a number in place of an array.
        handles = {
            path: array.__copy__() if type(array) is mx.array else copy.copy(array)
            for path, array in given.items()
        }
        for path, handle in handles.items():
            for slot in self._slots[path]:
                slot.write(handle)
        for slot, array in self._arrays:
            slot.write(array.__copy__())
        return handles

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
        before: contents.Contents,
        handles: dict[str, mx.array],
        given: dict[str, mx.array],
        stateful: bool,
        first: bool,
    ) -> None:
        """Refuse a forward pass whose changes would be lost."""
        changes = contents.changes(self._places, before)
        rewritten = effects.rewritten(changes, self._slots, self._held, given, self._discard)
        if first:  # in-place writes are a property of the module, checked on the first call
            rewritten += effects.written(handles, given, self._held)
            effects.refuse_private_writes(self._arrays)
        if rewritten and not stateful:
            effects.refuse_lost_state(rewritten)


def _warn_borrowed(path: str, kind: str) -> None:
    warnings.warn(
        f"functional: {path or 'the module'} is a {kind}, which cannot be copied: apply runs the module "
        "itself and restores it after each call, and its first weights stay in memory",
        UserWarning,
        stacklevel=checks.users_level(),
    )


def _stand_in(leaf: Any) -> Any:
    return mx.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf


def _is_trained(params: Params) -> bool:
    """Return whether the training step differentiates these parameters, not those of a reference model."""
    step = context.current_step()
    if step is None:
        return False
    ours = {id(leaf) for leaf in step.leaves}
    leaves = tree.leaves(params)
    if any(id(leaf) in ours for leaf in leaves):
        return True
    # A cast to the same dtype gives a new handle of the same array, without an operation. stop_gradient adds
    # an operation that reads it.
    reading = [mx.stop_gradient(leaf) for leaf in leaves]
    return bool(graph.used(reading, {str(index): leaf for index, leaf in enumerate(step.leaves)}))
