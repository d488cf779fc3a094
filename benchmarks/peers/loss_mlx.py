"""The loss of an output projection on MLX: plain, by `mlx.nn`, and in chunks by purestep."""

import gc
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from benchmarks.peers.with_mlx import OnMLX
from benchmarks.workloads.projection import Projection, sampled
from purestep import compiled
from purestep.losses import linear_cross_entropy

FAST, NN = "mx.fast", "mlx.nn"


class Loss(OnMLX):
    """Loss and gradients by `mx.fast.cross_entropy`, by `nn.losses`, or in chunks of so many tokens."""

    def __init__(self, problem: Projection, how: str | int, compiled: bool = True):
        super().__init__()
        self._how, self._compiled = how, compiled
        self._inputs = self._arrays(problem)
        mx.eval(self._inputs)
        self._call = self._function(how)

    def _arrays(self, problem: Projection) -> tuple[mx.array, mx.array, mx.array]:
        hidden, weight, targets = problem.arrays()
        dtype = getattr(mx, problem.dtype)
        return mx.array(hidden).astype(dtype), mx.array(weight).astype(dtype), mx.array(targets)

    def _function(self, how: str | int) -> Any:
        def loss(hidden: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
            if isinstance(how, int):
                return linear_cross_entropy(hidden, weight, targets, chunk_size=how).value
            logits = hidden @ weight.T
            if how == FAST:
                return mx.fast.cross_entropy(logits, targets).mean()
            return nn.losses.cross_entropy(logits.astype(mx.float32), targets, reduction="mean")

        made: Any = mx.value_and_grad(loss, argnums=(0, 1))
        if not self._compiled:
            return made
        if not isinstance(how, int):
            return mx.compile(made)
        # `compiled` uses kernels of its own on CUDA, and takes a state and a batch.
        step = compiled(lambda arrays, targets: made(*arrays, targets))
        return lambda hidden, weight, targets: step((hidden, weight), targets)

    def results(self, problem: Projection) -> list[list[float]]:
        """Return the loss, and samples of both gradients, of another problem."""
        chunk = problem.tokens // 7 if isinstance(self._how, int) else self._how
        return self._sampled(self._function(chunk)(*self._arrays(problem)))

    def result(self) -> list[list[float]]:
        """Return the loss, and samples of both gradients, of the problem that is timed."""
        return self._sampled(self._call(*self._inputs))

    def _sampled(self, result: Any) -> list[list[float]]:
        loss, gradients = result
        flat = [g.astype(mx.float32).reshape(-1) for g in gradients]
        return [[loss.item()], *(sampled(g) for g in flat)]

    def start(self) -> Any:
        """Start loss and gradients."""
        result = self._call(*self._inputs)
        mx.async_eval(result)
        return result

    def peak(self, steps: int) -> int | None:
        """Return the peak of memory over inputs and gradients."""
        self.run(2)
        gc.collect()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        for _ in range(steps):
            mx.eval(self.start())  # one at a time: the peak of one
        return mx.get_peak_memory() - before - sum(x.nbytes for x in self._inputs[:2])
