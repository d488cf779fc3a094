"""The floating-point operations of a function, counted from its graph."""

from math import prod

from purestep._core import checks
from purestep._core.types import Batch, StepFn
from purestep._graph.capture import capture
from purestep._graph.nodes import Graph, Operation

_PRODUCTS = frozenset("Matmul AddMM GatherMM BlockMaskedMM QuantizedMatmul GatherQMM QQMatmul".split())
_ATTENTION = "ScaledDotProductAttention"


def count_flops(graph: Graph) -> int:
    """Return the floating-point operations of a graph: a multiplication and an addition are two.

    As torch's FlopCounterMode, it counts products of matrices (2 m n k), convolutions and attention, and
    nothing else. Attention counts the whole square, also if it is causal; its fused gradient is five
    products. A transposed convolution counts the pairs of an input and a weight, not the zeros between
    inputs.

    Differences from torch: groups of a convolution count in the gradient of its weights too.
    """
    return sum(flops_of(operation) for operation in graph.operations())


def flops_of(operation: Operation) -> int:
    """Return the floating-point operations of one operation."""
    if operation.name in _PRODUCTS:
        return 2 * operation.outputs[0].size * operation.inputs[0].shape[-1]
    if operation.name == "SegmentedMM":  # each row of the cotangent meets one row of the input
        cotangent, source = operation.inputs[:2]
        return 2 * cotangent.size * source.shape[-1]
    if operation.name == "Convolution":
        return _convolution(operation)
    if operation.name in (_ATTENTION, f"{_ATTENTION}VJP"):
        return _attention(operation)
    return 0


def _convolution(operation: Operation) -> int:
    (batch, *inputs, _), (channels, *kernel, depth) = (value.shape for value in operation.inputs[:2])
    outputs = operation.outputs[0].shape[1:-1]
    dilation, flipped = operation.arguments[4], operation.arguments[6]
    if flipped or any(step != 1 for step in dilation):
        pairs = [
            given * min(weights, made) for given, weights, made in zip(inputs, kernel, outputs, strict=True)
        ]
    else:
        pairs = [made * weights for made, weights in zip(outputs, kernel, strict=True)]
    return 2 * batch * channels * depth * prod(pairs)


def _attention(operation: Operation) -> int:
    queries, keys, values = (value.shape for value in operation.inputs[:3])
    square = 2 * prod(queries[:-1]) * keys[-2]
    scores, mixed = square * queries[-1], square * values[-1]
    # The gradient: the scores again, and two products for each of the forward pass.
    return scores + mixed if operation.name == _ATTENTION else 3 * scores + 2 * mixed


def step_flops(step: StepFn, state: object, batch: Batch) -> int:
    """Return the floating-point operations of one step; nothing is computed.

    It counts what torch's FlopCounterMode counts: products of matrices, convolutions and attention, forward,
    backward and in the optimizer. Recomputed activations count, since they are computed. Custom kernels do
    not count. The step is traced once, as when it is compiled.

    Args:
        step: `step(state, batch) -> (state, metrics)`; `compiled` steps too.
        state: a state of the step; only shapes and dtypes matter.
        batch: a batch.

    Returns:
        FLOP, where a multiplication and an addition are two.

    Raises:
        ValueError: if MLX cannot describe an operation of the step.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(batch["x"] @ params["w"]).mean()
    >>> transform = ps.optimizers.sgd(0.1)
    >>> state = ps.TrainState.create({"w": mx.zeros((4, 3))}, transform)
    >>> batch = {"x": mx.zeros((8, 4))}
    >>> step_flops(ps.train_step(loss_fn, transform), state, batch)  # forward and the weights' gradient
    384
    """
    checks.function("step_flops", "step", step)
    return count_flops(capture(step, state, batch))
