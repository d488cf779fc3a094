"""The output projection of a language model: its size, states, weight and targets, by numpy alone."""

import importlib
from typing import Any, NamedTuple

_SAMPLED = 4096  # elements of a gradient that are compared


class Projection(NamedTuple):
    """A problem: states [tokens, features], a weight [classes, features], targets [tokens]."""

    tokens: int
    features: int
    classes: int
    dtype: str

    def arrays(self) -> tuple[Any, Any, Any]:
        """Return the states and the weight, numpy float32, and the targets, int32. The same everywhere."""
        numpy: Any = importlib.import_module("numpy")
        draw = numpy.random.default_rng(0)
        hidden = draw.standard_normal((self.tokens, self.features), dtype=numpy.float32)
        weight = draw.standard_normal((self.classes, self.features), dtype=numpy.float32)
        weight *= numpy.float32(self.features**-0.5)
        return hidden, weight, draw.integers(0, self.classes, self.tokens, dtype=numpy.int32)

    def flops(self) -> int:
        """Return the FLOP of the products: the logits, and the gradients of states and weight."""
        return 6 * self.tokens * self.features * self.classes

    def about(self) -> str:
        """Describe the problem in one line."""
        return f"{self.tokens} tokens x {self.features} features x {self.classes} classes, {self.dtype}"


def sampled(flat: Any) -> list[float]:
    """Return some elements of a flat array of any framework, evenly spaced, the first among them."""
    return flat[:: max(1, len(flat) // _SAMPLED)].tolist()


def apart(found: list[list[float]], wanted: list[list[float]]) -> list[float]:
    """Return the distance of each array from what is wanted, relative to the norm of the latter."""
    result = []
    for ours, theirs in zip(found, wanted, strict=True):
        distance = sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) ** 0.5
        result.append(distance / sum(b * b for b in theirs) ** 0.5)
    return result
