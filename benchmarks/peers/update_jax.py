"""Clipping and AdamW over given gradients with optax, jitted, the state donated."""

from typing import Any

from benchmarks.peers.with_jax import OnJAX
from benchmarks.workloads import gpt


class Update(OnJAX):
    """`optax.adamw`, behind `optax.clip_by_global_norm` if `clip`."""

    def __init__(self, shape: gpt.Shape, clip: bool):
        super().__init__()
        jax, optax = self._jax, self._optax
        adamw = optax.adamw(gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY)
        transform = optax.chain(optax.clip_by_global_norm(gpt.MAX_NORM), adamw) if clip else adamw
        params = {name: jax.numpy.asarray(value) for name, value in gpt.weights(shape).items()}
        self._gradients = {name: jax.numpy.asarray(value) for name, value in gpt.gradients(shape).items()}
        self._state = (params, transform.init(params))

        def update(state: Any, gradients: Any) -> Any:
            params, opt_state = state
            updates, opt_state = transform.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), params["ln.bias"] + 0.0  # not donated to the next call

        self._update = jax.jit(update, donate_argnums=0)

    def start(self) -> Any:
        """Start an update."""
        self._state, done = self._update(self._state, self._gradients)
        return done

    def read(self, started: Any) -> list[float]:
        """Return the parameters that are compared."""
        return gpt.sampled(self._state[0])
