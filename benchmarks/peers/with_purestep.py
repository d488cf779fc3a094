"""Training GPT-2 with purestep: the whole step, and its gradients alone."""

from typing import Any, ClassVar

import mlx.core as mx

import purestep as ps
from benchmarks.peers.with_mlx import GPT, MLXDriver
from benchmarks.workloads import gpt


class _Purestep(MLXDriver):
    _groups: ClassVar[dict[str, Any]] = {}  # arguments of `configure_cuda`

    def __init__(self, shape: gpt.Shape, microbatches: int):
        ps.hardware.configure_cuda(**self._groups)
        super().__init__(shape, microbatches)
        loss_fn, self._params = self._loss_of(shape)
        self._loss_fn = (
            loss_fn if shape.dtype == "float32" else ps.compute_in(loss_fn, getattr(mx, shape.dtype))
        )
        self._transform = ps.chain(
            ps.transforms.clip_by_global_norm(gpt.MAX_NORM),
            ps.optimizers.adamw(gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY),
        )

    def _loss_of(self, shape: gpt.Shape) -> tuple[Any, Any]:
        apply, params, _ = ps.functional(GPT(shape))

        def loss_fn(params: Any, batch: Any, rng: mx.array) -> ps.Mean:
            return ps.losses.cross_entropy(apply(params, batch["inputs"], rng=rng), batch["targets"])

        return loss_fn, params


class Step(_Purestep):
    """The step that a user writes."""

    _staged: ClassVar[bool] = False  # whether microbatches are compiled one by one

    def __init__(self, shape: gpt.Shape, microbatches: int):
        super().__init__(shape, microbatches)
        self._state = ps.TrainState.create(self._start(), self._transform)
        del self._params
        step = ps.train_step(self._loss_fn, self._transform, microbatches=microbatches)
        self._step = ps.compiled(step, staged=self._staged)
        mx.eval(self._state)

    def _start(self) -> Any:
        return self._params

    def start(self) -> Any:
        """Start a step."""
        self._state, metrics = self._step(self._state, self.batch())
        mx.async_eval(self._state, metrics)
        return metrics["loss"], metrics["grad_norm"]


class Packed(Step):
    """The same with its parameters as few vectors."""

    def _start(self) -> Any:
        return ps.packed(self._params)


class Tuned(Packed):
    """The same with the loss of the head's product for all tokens at once, and larger groups of kernels.

    Microbatches are compiled one by one.
    """

    _staged = True

    _groups: ClassVar[dict[str, Any]] = {"group_kernels": 24, "group_elements": 2**32}

    def _loss_of(self, shape: gpt.Shape) -> tuple[Any, Any]:
        return _by_head(shape, shape.rows * shape.context)


class Lean(Packed):
    """The same with the loss in chunks of an eighth of the tokens, and a limit for memory."""

    _staged = True

    LIMIT: ClassVar[dict[int, float]] = {1: 5.4e9}  # bytes, by the number of microbatches; else:
    OTHER: ClassVar[float] = 6.5e9

    def __init__(self, shape: gpt.Shape, microbatches: int):
        mx.set_memory_limit(int(self.LIMIT.get(microbatches, self.OTHER)))
        super().__init__(shape, microbatches)

    def _loss_of(self, shape: gpt.Shape) -> tuple[Any, Any]:
        return _by_head(shape, max(1, shape.rows * shape.context // 8))


def _by_head(shape: gpt.Shape, chunk_size: int) -> tuple[Any, Any]:
    """Return the loss by `linear_cross_entropy`, and the parameters."""
    apply, params, _ = ps.functional(_Body(shape))

    def loss_fn(params: Any, batch: Any, rng: mx.array) -> ps.Mean:
        targets, head = batch["targets"], params["wte"]["weight"]
        states = apply(params, batch["inputs"], rng=rng)
        return ps.losses.linear_cross_entropy(states, head, targets, chunk_size=chunk_size)

    return loss_fn, params


class _Body(GPT):
    def __call__(self, tokens: mx.array) -> mx.array:
        return self.states(tokens)


class Gradients(_Purestep):
    """Loss and gradients alone: `mx.value_and_grad` of the same loss, compiled by `ps.compiled`.

    In microbatches it is `train_step` without its update, since the accumulation is the library's.
    """

    def __init__(self, shape: gpt.Shape, microbatches: int):
        super().__init__(shape, microbatches)
        key = mx.random.key(0)
        if microbatches == 1:
            made: Any = mx.value_and_grad(lambda params, batch: self._loss_fn(params, batch, key).value)
            self._given: Any = self._params
        else:
            transform = ps.identity()
            step = ps.train_step(self._loss_fn, transform, microbatches=microbatches)
            self._given = ps.TrainState.create(self._params, transform)

            def accumulated(state: Any, batch: Any) -> Any:
                parts = step.parts(state, batch)
                return parts.metrics["loss"], parts.gradients

            made = accumulated

        self._made_by = ps.compiled(made)
        mx.eval(self._given)

    def start(self) -> Any:
        """Start the gradients of one batch."""
        loss, gradients = self._made_by(self._given, self.batch())
        mx.async_eval(loss, gradients)
        return [loss]


class TunedGradients(Gradients):
    """The same of the loss of `Tuned`, with its groups of kernels."""

    _groups: ClassVar[dict[str, Any]] = Tuned._groups

    def _loss_of(self, shape: gpt.Shape) -> tuple[Any, Any]:
        return _by_head(shape, shape.rows * shape.context)
