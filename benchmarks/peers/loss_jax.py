"""The loss of an output projection with JAX and optax, jitted."""

from typing import Any

from benchmarks.peers.with_jax import OnJAX
from benchmarks.workloads.projection import Projection, sampled


class Loss(OnJAX):
    """`optax.softmax_cross_entropy_with_integer_labels` of all logits in float32."""

    def __init__(self, problem: Projection):
        super().__init__()
        jax, optax = self._jax, self._optax

        def loss(hidden: Any, weight: Any, targets: Any) -> Any:
            logits = (hidden @ weight.T).astype(jax.numpy.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        self._call = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        self._inputs = self._arrays(problem)

    def _arrays(self, problem: Projection) -> tuple[Any, Any, Any]:
        numpy = self._jax.numpy
        hidden, weight, targets = (numpy.asarray(array) for array in problem.arrays())
        return hidden.astype(problem.dtype), weight.astype(problem.dtype), targets

    def results(self, problem: Projection) -> list[list[float]]:
        """Return the loss, and samples of both gradients, of another problem; without TF32."""
        with self._jax.default_matmul_precision("highest"):
            return self._sampled(self._call(*self._arrays(problem)))

    def result(self) -> list[list[float]]:
        """Return the loss, and samples of both gradients, of the problem that is timed."""
        return self._sampled(self._call(*self._inputs))

    def _sampled(self, result: Any) -> list[list[float]]:
        loss, gradients = result
        return [[float(loss)], *(sampled(g.astype("float32").reshape(-1)) for g in gradients)]

    def start(self) -> Any:
        """Start loss and gradients."""
        self._state = self._call(*self._inputs)
        return self._state

    def peak(self, steps: int) -> int | None:
        """Return the peak since the process began over inputs and gradients, without the small check."""
        self.run(steps)
        peak = self.peak_bytes()
        nbytes = [x.nbytes for x in self._inputs]
        return None if peak is None else peak - sum(nbytes) - sum(nbytes[:2])
