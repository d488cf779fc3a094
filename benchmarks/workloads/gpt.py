"""The transformer that every framework trains: its sizes, weights and tokens, by numpy alone."""

import importlib
from typing import Any, NamedTuple

LEARNING_RATE, WEIGHT_DECAY, MAX_NORM, EPSILON = 3e-4, 0.01, 1.0, 1e-5
BATCHES = 4  # batches that are made in advance; step i uses batch i % BATCHES
SAMPLED = 8  # elements of each array that `optimizer` compares


class Shape(NamedTuple):
    """GPT-2's architecture: pre-norm blocks, learned positions, a head that shares the embedding's weights.

    Attributes:
        layers: number of blocks.
        width: features of a token.
        heads: attention heads; width / heads features each.
        vocabulary: number of token classes.
        context: tokens of a sequence.
        rows: sequences of a microbatch.
        dtype: of the computation, `bfloat16` or `float32`; weights and optimizer state are float32.
        reference: whether the losses are compared with a float32 reference.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    rows: int
    dtype: str = "bfloat16"
    reference: bool = True

    def about(self) -> str:
        """Describe the shape in one line."""
        return (
            f"{self.layers} layers, width {self.width}, vocabulary {self.vocabulary}, "
            f"{self.rows} x {self.context} tokens, {self.dtype}"
        )


SIZES = {
    "gpt2": Shape(12, 768, 12, 50304, 1024, 8, reference=False),
    "small": Shape(4, 256, 4, 8192, 256, 4),
    "tiny": Shape(2, 64, 4, 512, 64, 4),
    "cpu": Shape(4, 128, 4, 8192, 128, 8, "float32"),
}


def shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array by name; a matrix is [out, in]."""
    width, found = shape.width, dict[str, tuple[int, ...]]()
    found["wte.weight"], found["wpe.weight"] = (shape.vocabulary, width), (shape.context, width)
    for block in (f"blocks.{i}." for i in range(shape.layers)):
        for norm in ("ln1", "ln2"):
            found[f"{block}{norm}.weight"] = found[f"{block}{norm}.bias"] = (width,)
        sizes = {"qkv": (3 * width, width), "out": (width, width), "up": (4 * width, width)}
        for name, (rows, columns) in (sizes | {"down": (width, 4 * width)}).items():
            found[f"{block}{name}.weight"], found[f"{block}{name}.bias"] = (rows, columns), (rows,)
    found["ln.weight"] = found["ln.bias"] = (width,)
    return found


def parameters(shape: Shape, *, multiplied: bool = False) -> int:
    """Return the number of parameters; `multiplied`: without the positions, which are only looked up."""
    count = sum(rows * (rest[0] if rest else 1) for rows, *rest in shapes(shape).values())
    return count - shape.context * shape.width if multiplied else count


def weights(shape: Shape) -> dict[str, Any]:
    """Return the weights to start from, numpy float32 by name. The same in every process."""
    numpy: Any = importlib.import_module("numpy")
    generator, found = numpy.random.default_rng(0), {}
    for name, size in shapes(shape).items():
        if len(size) == 2:
            scale = 0.02 / ((2 * shape.layers) ** 0.5 if ".out." in name or ".down." in name else 1.0)
            found[name] = generator.standard_normal(size, dtype=numpy.float32) * numpy.float32(scale)
        else:
            found[name] = numpy.full(size, float(".ln" in f".{name}" and "weight" in name), numpy.float32)
    return found


def gradients(shape: Shape) -> dict[str, Any]:
    """Return gradients for `optimizer`, numpy float32 by name, with a global norm far above 1."""
    numpy: Any = importlib.import_module("numpy")
    generator, scale = numpy.random.default_rng(2), numpy.float32(0.01)
    return {
        name: generator.standard_normal(size, dtype=numpy.float32) * scale
        for name, size in shapes(shape).items()
    }


def batches(shape: Shape, microbatches: int) -> list[tuple[Any, Any]]:
    """Return pairs of inputs and targets, numpy int32 [microbatches * rows, context].

    Small token numbers are the most frequent, so that the first steps already lower the loss.
    """
    numpy: Any = importlib.import_module("numpy")
    generator, found = numpy.random.default_rng(1), []
    for _ in range(BATCHES):
        drawn = generator.random((microbatches * shape.rows, shape.context + 1))
        tokens = (shape.vocabulary * drawn**3).astype(numpy.int32)
        found.append(tuple(numpy.ascontiguousarray(half) for half in (tokens[:, :-1], tokens[:, 1:])))
    return found


def sampled(params: dict[str, Any]) -> list[float]:
    """Return the first elements of each array of any framework, in the order of the names."""
    return [float(x) for name in sorted(params) for x in params[name].reshape(-1)[:SAMPLED].tolist()]


def moved(shape: Shape, steps: int, *, clip: bool) -> list[float]:
    """Return how far AdamW moves the parameters of `sampled`, computed in float64 by numpy."""
    numpy: Any = importlib.import_module("numpy")
    start, given = weights(shape), gradients(shape)
    norm = sum(float(numpy.square(g, dtype=numpy.float64).sum()) for g in given.values()) ** 0.5
    scale = min(1.0, MAX_NORM / norm) if clip else 1.0
    p, g = (numpy.array(sampled(tree)) for tree in (start, given))
    g, first, second, before = g * scale, 0.0 * g, 0.0 * g, p.copy()
    for step in range(1, steps + 1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        m, v = first / (1 - 0.9**step), second / (1 - 0.999**step)
        p = p - LEARNING_RATE * (m / (v**0.5 + 1e-8) + WEIGHT_DECAY * p)
    return (p - before).tolist()
