"""Clipping and AdamW over given gradients on MLX: purestep, by hand, `mlx.optimizers`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

import purestep as ps
from benchmarks.peers.with_mlx import OnMLX
from benchmarks.workloads import gpt

Update = Callable[[Any, Any], Any]


class UpdateOnMLX(OnMLX):
    """A function `(state, gradients) -> state`; the state begins with the parameters by name."""

    def __init__(self, shape: gpt.Shape, clip: bool, make: Callable[[Any, bool], tuple[Any, Update]]):
        super().__init__()
        params = {name: mx.array(value) for name, value in gpt.weights(shape).items()}
        self._gradients = {name: mx.array(value) for name, value in gpt.gradients(shape).items()}
        self._state, self._update = make(params, clip)
        if isinstance(self._state[0], ps.Packed):  # as they arrive from a step on packed parameters
            self._gradients = ps.packed(self._gradients)
        mx.eval(self._state, self._gradients)

    def start(self) -> Any:
        """Start an update."""
        self._state = self._update(self._state, self._gradients)
        mx.async_eval(self._state)
        return ps.tree.leaves(self._state[0])[-1]

    def read(self, started: Any) -> list[float]:
        """Return the parameters that are compared."""
        return gpt.sampled(ps.unpacked(self._state[0]))


def purestep(params: Any, clip: bool, *, flat: bool = False, packed: bool = False) -> tuple[Any, Update]:
    """Return the library's transforms, on the leaves, on one flat vector, or on packed parameters."""
    params = ps.packed(params) if packed else params
    adamw = ps.optimizers.adamw(gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY)
    transform = ps.chain(ps.transforms.clip_by_global_norm(gpt.MAX_NORM), adamw) if clip else adamw
    transform = ps.transforms.flatten(transform) if flat else transform

    @mx.compile
    def update(state: Any, gradients: Any) -> Any:
        params, opt_state = state
        updates, opt_state = transform.update(gradients, opt_state, params)
        return ps.apply_updates(params, updates), opt_state

    return (params, transform.init(params)), update


def by_hand(params: Any, clip: bool) -> tuple[Any, Update]:
    """Return the same mathematics written out, leaf by leaf."""

    @mx.compile
    def update(state: Any, gradients: Any) -> Any:
        params, first, second, count = state
        if clip:
            norm = mx.sqrt(sum((mx.square(g).sum() for g in gradients.values()), mx.array(0.0)))
            scale = mx.minimum(1.0, gpt.MAX_NORM / norm)
            gradients = tree_map(lambda g: g * scale, gradients)
        count = count + 1
        power = count.astype(mx.float32)
        c1, c2 = 1 / (1 - 0.9**power), 1 / (1 - 0.999**power)
        first = tree_map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)

        def moved(p: mx.array, m: mx.array, v: mx.array) -> mx.array:
            return p - gpt.LEARNING_RATE * (m * c1 / (mx.sqrt(v * c2) + 1e-8) + gpt.WEIGHT_DECAY * p)

        return tree_map(moved, params, first, second), first, second, count

    zeros = [tree_map(mx.zeros_like, params) for _ in range(2)]
    return (params, *zeros, mx.array(0)), update


def optimizers(params: Any, clip: bool) -> tuple[Any, Update]:
    """Return `mlx.optimizers` in a compiled function that captures the optimizer's state."""
    optimizer = optim.AdamW(gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY, bias_correction=True)
    optimizer.init(params)
    captured = [optimizer.state]

    @partial(mx.compile, inputs=captured, outputs=captured)
    def update(state: Any, gradients: Any) -> Any:
        if clip:
            gradients, _ = optim.clip_grad_norm(gradients, gpt.MAX_NORM)
        return (optimizer.apply_gradients(gradients, state[0]), captured)

    def called(state: Any, gradients: Any) -> Any:
        params, _ = update(state[:1], gradients)
        return params, captured

    return (params, captured), called


MAKE: dict[str, Callable[[Any, bool], tuple[Any, Update]]] = {
    "purestep": purestep,
    "purestep, packed": partial(purestep, packed=True),
    "purestep, flatten": partial(purestep, flat=True),
    "MLX by hand": by_hand,
    "mlx.optimizers": optimizers,
}


def build(shape: gpt.Shape, clip: bool, name: str) -> UpdateOnMLX:
    """Return a contestant by its name."""
    if name.startswith("purestep"):
        ps.hardware.configure_cuda()
    return UpdateOnMLX(shape, clip, MAKE[name])
