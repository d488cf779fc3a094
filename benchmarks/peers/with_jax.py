"""Training GPT-2 with JAX and optax."""

import importlib
from typing import Any

from benchmarks.peers.driving import Driver
from benchmarks.workloads import gpt


class OnJAX(Driver):
    """Waiting and memory of any contestant on JAX, which keeps its arrays in `self._state`."""

    def __init__(self):
        self._jax: Any = importlib.import_module("jax")
        self._optax: Any = importlib.import_module("optax")
        self._state: Any = None

    def wait(self, started: Any) -> None:
        """Wait for this step."""
        self._jax.block_until_ready(started)

    def synchronize(self) -> None:
        """Wait for the newest state."""
        self._jax.block_until_ready(self._state)

    def peak_bytes(self) -> int | None:
        """Return the peak since the process began: JAX cannot reset it."""
        known = self._jax.local_devices()[0].memory_stats() or {}
        return known.get("peak_bytes_in_use")

    def note(self) -> str:
        """Return the versions."""
        return f"jax {self._jax.__version__}, optax {self._optax.__version__}"


class Step(OnJAX):
    """One jitted function with a donated state; attention by cuDNN where it works, else by XLA."""

    def __init__(self, shape: gpt.Shape, microbatches: int):
        super().__init__()
        self._shape, self._made = shape, 0
        jax, numpy = self._jax, self._jax.numpy
        self._attention = self._working_attention()
        self._batches = [
            tuple(numpy.asarray(half).reshape(microbatches, shape.rows, -1) for half in batch)
            for batch in gpt.batches(shape, microbatches)
        ]
        optax = self._optax
        transform = optax.chain(
            optax.clip_by_global_norm(gpt.MAX_NORM),
            optax.adamw(gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY),
        )
        params = {name: numpy.asarray(value) for name, value in gpt.weights(shape).items()}
        self._state = (params, transform.init(params))
        loss_and_grad = jax.value_and_grad(self._loss)

        def step(state: Any, inputs: Any, targets: Any) -> Any:
            params, opt_state = state
            if microbatches == 1:
                loss, grads = loss_and_grad(params, inputs[0], targets[0])
            else:

                def add(summed: Any, batch: Any) -> Any:
                    return jax.tree.map(numpy.add, summed, loss_and_grad(params, *batch)), None

                zero = (numpy.zeros(()), jax.tree.map(numpy.zeros_like, params))
                summed, _ = jax.lax.scan(add, zero, (inputs, targets))
                loss, grads = jax.tree.map(lambda x: x / microbatches, summed)
            updates, opt_state = transform.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (loss, optax.global_norm(grads))

        self._step = jax.jit(step, donate_argnums=0)

    def _working_attention(self) -> str:
        """Return `cudnn` if its gradient compiles and runs here, else `xla`."""
        jax, shape = self._jax, self._shape
        if jax.default_backend() != "gpu" or shape.dtype == "float32":
            return "xla"
        size = (1, shape.context, shape.heads, shape.width // shape.heads)
        x = jax.numpy.ones(size, shape.dtype)

        def total(x: Any) -> Any:
            return jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation="cudnn").sum()

        try:
            jax.block_until_ready(jax.jit(jax.grad(total))(x))
        except Exception:  # cuDNN is absent, too old, or refuses the shape
            return "xla"
        return "cudnn"

    def _norm(self, p: Any, name: str, x: Any) -> Any:
        numpy = self._jax.numpy
        wide = x.astype(numpy.float32)
        centered = wide - wide.mean(-1, keepdims=True)
        scale = self._jax.lax.rsqrt(numpy.square(centered).mean(-1, keepdims=True) + gpt.EPSILON)
        return (centered * scale * p[f"{name}.weight"] + p[f"{name}.bias"]).astype(x.dtype)

    def _linear(self, p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def _block(self, p: Any, name: str, x: Any) -> Any:
        jax, shape = self._jax, self._shape
        rows, seq, width = x.shape
        heads = self._linear(p, f"{name}.qkv", self._norm(p, f"{name}.ln1", x))
        q, k, v = (heads.reshape(rows, seq, 3, shape.heads, -1)[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=self._attention)
        x = x + self._linear(p, f"{name}.out", mixed.reshape(rows, seq, width))
        hidden = self._linear(p, f"{name}.up", self._norm(p, f"{name}.ln2", x))
        return x + self._linear(p, f"{name}.down", jax.nn.gelu(hidden, approximate=True))

    def _loss(self, params: Any, inputs: Any, targets: Any) -> Any:
        numpy = self._jax.numpy
        p = {name: value.astype(self._shape.dtype) for name, value in params.items()}
        x = p["wte.weight"][inputs] + p["wpe.weight"][: inputs.shape[1]]
        for i in range(self._shape.layers):
            x = self._block(p, f"blocks.{i}", x)
        logits = (self._norm(p, "ln", x) @ p["wte.weight"].T).astype(numpy.float32)
        return self._optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def start(self) -> Any:
        """Start a step."""
        self._state, metrics = self._step(self._state, *self._batches[self._made % gpt.BATCHES])
        self._made += 1
        return metrics

    def read(self, started: Any) -> list[float]:
        """Return loss and norm."""
        return [float(value) for value in started]

    def note(self) -> str:
        """Return the version and the implementation of attention."""
        return f"{super().note()}, attention by {self._attention}; its peak counts the first calls"
