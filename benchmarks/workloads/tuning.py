"""Fine-tuning of a llama by low-rank adapters: with purestep, and with mlx-lm's own trainer."""

import contextlib
import importlib
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim

import purestep as ps
from benchmarks.peers.driving import WARM
from benchmarks.peers.with_mlx import OnMLX

LEARNING_RATE, RANK, SCALE = 1e-4, 8, 20.0
BATCHES = 4


class Llama(NamedTuple):
    """A model of mlx-lm's architecture `llama`, with random weights, and its batches."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rows: int
    dtype: str

    def about(self) -> str:
        """Describe the shape in one line."""
        return (
            f"a llama of {self.layers} layers of width {self.width}, {self.rows} x {self.context} tokens, "
            f"{self.dtype}, adapters of rank {RANK}"
        )

    def flops(self) -> int:
        """Return the FLOP of a step: forward and backward products; no gradients of frozen weights."""
        per_layer = self.width * (2 * self.width + 2 * self.width * self.kv_heads // self.heads)
        per_layer += 3 * self.width * self.hidden
        multiplied = self.layers * per_layer + self.vocabulary * self.width
        return 4 * self.rows * self.context * multiplied


def model(shape: Llama) -> Any:
    """Return the model with its adapters; all else is frozen. The same in every process of a device."""
    llama: Any = importlib.import_module("mlx_lm.models.llama")
    tuning: Any = importlib.import_module("mlx_lm.tuner.utils")
    mx.random.seed(0)
    made = llama.Model(
        llama.ModelArgs(
            model_type="llama", hidden_size=shape.width, num_hidden_layers=shape.layers,
            intermediate_size=shape.hidden, num_attention_heads=shape.heads, rms_norm_eps=1e-5,
            vocab_size=shape.vocabulary, num_key_value_heads=shape.kv_heads,
        )
    )  # fmt: skip
    made.freeze()
    tuning.linear_to_lora_layers(made, shape.layers, {"rank": RANK, "scale": SCALE, "dropout": 0.0})
    made.set_dtype(getattr(mx, shape.dtype))
    mx.eval(made.parameters())
    return made


def batches(shape: Llama) -> list[tuple[mx.array, mx.array]]:
    """Return tokens [rows, context + 1] and mlx-lm's pairs of offset and length [rows, 2]; all are real."""
    made = []
    for index in range(BATCHES):
        drawn = mx.random.uniform(shape=(shape.rows, shape.context + 1), key=mx.random.key(index))
        tokens = (shape.vocabulary * drawn**3).astype(mx.int32)
        made.append((tokens, mx.array([[0, shape.context + 1]] * shape.rows)))
    mx.eval(made)
    return made


class Purestep(OnMLX):
    """`train_step` on the adapters."""

    def __init__(self, shape: Llama, packed: bool):
        super().__init__()
        apply, params, _ = ps.functional(model(shape))

        def loss_fn(params: Any, batch: mx.array, rng: mx.array) -> ps.Mean:
            return ps.losses.cross_entropy(apply(params, batch[:, :-1], rng=rng), batch[:, 1:])

        transform = ps.optimizers.adam(LEARNING_RATE)
        self._state = ps.TrainState.create(ps.packed(params) if packed else params, transform)
        self._step = ps.compiled(ps.train_step(loss_fn, transform))
        self._batches, self._made = [tokens for tokens, _ in batches(shape)], 0
        mx.eval(self._state)

    def start(self) -> Any:
        """Start a step."""
        self._state, metrics = self._step(self._state, self._batches[self._made % BATCHES])
        self._made += 1
        mx.async_eval(self._state, metrics)
        return [metrics["loss"]]

    def read(self, started: Any) -> list[float]:
        """Return the loss."""
        return [started[0].item()]


class MlxLm(OnMLX):
    """`mlx_lm.tuner.trainer.train`, which waits for each step. Each turn is a call of it, and traces anew."""

    def __init__(self, shape: Llama):
        super().__init__()
        self._trainer: Any = importlib.import_module("mlx_lm.tuner.trainer")
        self._callbacks: Any = importlib.import_module("mlx_lm.tuner.callbacks")
        self._shape, self._model, self._batches = shape, model(shape), batches(shape)
        self._optimizer = optim.Adam(LEARNING_RATE, bias_correction=True)

    def _train(self, steps: int, every: int) -> list[dict[str, float]]:
        """Return the reports of so many steps."""
        reports: list[dict[str, float]] = []

        class Reports(self._callbacks.TrainingCallback):
            def on_train_loss_report(self, train_info: dict[str, float]) -> None:
                reports.append(train_info)

        def iterate(**options: Any) -> Any:
            for number in range(steps):
                yield self._batches[number % BATCHES]

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            args = self._trainer.TrainingArgs(
                batch_size=self._shape.rows, iters=steps, steps_per_report=every, steps_per_save=10**9,
                adapter_file=str(Path(folder) / "adapters.safetensors"),
            )  # fmt: skip
            self._trainer.train(
                self._model, self._optimizer, self._batches, args=args, iterate_batches=iterate,
                training_callback=Reports(),
            )  # fmt: skip
        return reports

    def first(self, steps: int) -> dict[str, Any]:
        """Return the seconds of the first step and the loss of each of the first steps."""
        reports = self._train(steps, 1)
        metrics = [[each["train_loss"]] for each in reports]
        version = importlib.import_module("mlx_lm").__version__
        seconds = 1 / reports[0]["iterations_per_second"]
        return {"seconds": seconds, "metrics": metrics, "note": f"mlx-lm {version}"}

    def seconds(self, steps: int) -> float:
        """Return the trainer's own seconds of so many steps, after as many in the same call."""
        steps = max(steps, WARM)
        return steps / self._train(2 * steps, steps)[-1]["iterations_per_second"]

    def run(self, steps: int) -> None:
        """Make so many steps."""
        self._train(steps, steps)
