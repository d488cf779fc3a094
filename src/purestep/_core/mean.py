"""Means that merge exactly, because they keep a total and a weight; and sums of such means."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Self, SupportsFloat, TypeAlias, TypeVar

import mlx.core as mx

from purestep._core import sums

_SMALLEST = 2.0**-126  # the smallest normal float32 number, whose inverse is finite
_ONE = mx.array(1.0)  # the weight of every plain scalar: one array, so that scalars share their weight

Number: TypeAlias = SupportsFloat | mx.array
"""A Python or numpy real number, or a 0-d array."""


def _refused(operator: str) -> Any:
    def refuse(self: Any, other: Any) -> NoReturn:
        raise _undefined(operator, other)

    return refuse


class _Arithmetic:
    """The operators of means and sums of means."""

    __slots__ = ()
    __array_ufunc__ = None  # so that `numpy number * mean` calls `__rmul__`

    def __add__(self, other: "AnyMean | Number") -> "AnyMean":
        if isinstance(other, (Mean, MeanSum)):
            return _joined((*_terms(self), *_terms(other)))
        scalar = _scalar("+", other)
        if not isinstance(scalar, mx.array):
            if scalar == 0:
                return self  # type: ignore[return-value]
            scalar = mx.array(scalar)
        return _joined((*_terms(self), Mean(scalar.astype(mx.float32), _ONE)))

    def __radd__(self, other: Number) -> "AnyMean":
        return self + other

    def __sub__(self, other: "AnyMean | Number") -> "AnyMean":
        return self + (-other if isinstance(other, (Mean, MeanSum)) else -_scalar("-", other))

    def __rsub__(self, other: Number) -> "AnyMean":
        return -self + _scalar("-", other)

    def __mul__(self, other: Number) -> Self:
        factor = _scalar("*", other)
        return _mapped(lambda total: total * factor, self)

    def __rmul__(self, other: Number) -> Self:
        return self * other

    def __truediv__(self, other: Number) -> Self:
        divisor = _scalar("/", other)
        if not isinstance(divisor, mx.array) and divisor == 0:
            raise ZeroDivisionError("Mean: division by zero")
        return _mapped(lambda total: total / divisor, self)

    def __neg__(self) -> Self:
        return self * -1.0

    __rtruediv__ = _refused("/")
    __lt__, __le__ = _refused("<"), _refused("<=")
    __gt__, __ge__ = _refused(">"), _refused(">=")
    __eq__, __ne__ = _refused("=="), _refused("!=")
    __contains__ = _refused("in")
    __hash__ = tuple.__hash__  # type: ignore[assignment]


class _MeanFields(NamedTuple):
    total: mx.array
    weight: mx.array


class _MeanSumFields(NamedTuple):
    terms: tuple["Mean", ...]


_Part = TypeVar("_Part", bound="Mean | MeanSum")


class Mean(_Arithmetic, _MeanFields):
    """A weighted mean stored as two sums, so that parts merge to the mean of the whole.

    Averaging the means of unequal parts gives a wrong mean. The sum of their totals over the sum of their
    weights is exact. Losses return a `Mean`; the `Mean`s of microbatches and evaluation batches are merged.

    A mean multiplied or divided by a number is a `Mean`. A mean plus another, or plus a number, is a
    `MeanSum`, in which each term keeps its own weight. An added number has weight 1, so merging averages it
    over the parts. A number is a Python or numpy number or a 0-d array. Write an array on the right, as in
    `mean * array`: MLX refuses the other order.

    >>> ce, aux = Mean(mx.array(6.0), mx.array(3.0)), Mean(mx.array(8.0), mx.array(2.0))
    >>> (ce + 0.5 * aux).value, (-ce / 4).value
    (array(4, dtype=float32), array(-0.5, dtype=float32))

    Attributes:
        total: 0-d float32, the weighted sum.
        weight: 0-d float32, the sum of the weights, such as the number of real tokens or examples.
    """

    __slots__ = ()

    @classmethod
    def of(cls, values: mx.array, weights: mx.array | None = None) -> "Mean":
        """Return the mean of an array, summed in float32.

        A value with weight 0 is ignored, even if it is infinite or NaN.

        Args:
            values: any shape.
            weights: a shape that broadcasts to that of `values`; by default every weight is 1.

        >>> Mean.of(mx.array([1.0, 2.0, 9.0]), mx.array([1.0, 1.0, 0.0])).value
        array(1.5, dtype=float32)
        """
        values = values.astype(mx.float32)
        if weights is None:
            return cls(sums.total(values), mx.array(float(values.size)))
        weights = mx.broadcast_to(weights.astype(mx.float32), values.shape)
        return cls(sums.total(mx.where(weights == 0, 0.0, values * weights)), sums.total(weights))

    @classmethod
    def merge(cls, first: _Part, *others: _Part) -> _Part:
        """Return the mean over all parts together. Sums of means are merged term by term.

        Raises:
            ValueError: if the parts are sums of different numbers of means.
        """
        parts = [_terms(part) for part in (first, *others)]
        counts = [len(part) for part in parts]
        if len(set(counts)) > 1:
            raise ValueError(f"Mean.merge: every part must have the same number of terms, got {counts}")
        merged = []
        for term in zip(*parts, strict=True):
            total, weight = term[0]
            for mean in term[1:]:
                total, weight = total + mean.total, weight + mean.weight
            merged.append(cls(total, weight))
        whole: Any = merged[0] if isinstance(first, Mean) else MeanSum(tuple(merged))
        return whole

    @property
    def value(self) -> mx.array:
        """`total / weight`, 0-d float32; 0, not NaN, if both are 0."""
        return self.share(self.total)

    def share(self, total: mx.array) -> mx.array:
        """Divide another sum over the same data, such as a gradient, by the weight; `0 / 0` is 0."""
        return total * (1 / mx.maximum(self.weight, _SMALLEST))


class MeanSum(_Arithmetic, _MeanSumFields):
    """A sum of means, each over its own weight, such as `ce + 0.01 * aux`. Its arithmetic is that of `Mean`.

    Sums merge term by term, so the merged sum of microbatches or evaluation batches is exact. Means that
    share one weight array form one term.

    >>> loss = Mean(mx.array(6.0), mx.array(3.0)) + mx.array(0.5)
    >>> loss.value, Mean.merge(loss, loss).value
    (array(2.5, dtype=float32), array(2.5, dtype=float32))

    Attributes:
        terms: the means, at least one; coefficients are part of their totals.
    """

    __slots__ = ()

    @property
    def value(self) -> mx.array:
        """The sum of the values of the terms, 0-d float32."""
        return sum((mean.value for mean in self.terms[1:]), self.terms[0].value)

    @property
    def weight(self) -> mx.array:
        """The weight of the first term, used where a single weight is needed."""
        return self.terms[0].weight


AnyMean: TypeAlias = Mean | MeanSum
"""A mean or a sum of means."""


def map_terms(fn: Callable[[Mean], Mean], mean: AnyMean) -> AnyMean:
    """Apply `fn(Mean) -> Mean` to a mean, or to each term of a sum of means."""
    return fn(mean) if isinstance(mean, Mean) else MeanSum(tuple(fn(term) for term in mean.terms))


def _mapped(fn: Callable[[mx.array], mx.array], mean: Any) -> Any:
    return _joined(tuple(Mean(fn(term.total), term.weight) for term in _terms(mean)))


def _terms(mean: Any) -> tuple[Mean, ...]:
    if not isinstance(mean, (Mean, MeanSum)):
        raise TypeError(f"Mean.merge: parts must be Means, got {type(mean).__name__}")
    return (mean,) if isinstance(mean, Mean) else mean.terms


def _joined(terms: tuple[Mean, ...]) -> AnyMean:
    """Add terms that share their weight array. One term is a `Mean`, several are a `MeanSum`."""
    found: list[Mean] = []
    for mean in terms:
        at = next((i for i, have in enumerate(found) if have.weight is mean.weight), None)
        if at is None:
            found.append(mean)
        else:
            found[at] = Mean(found[at].total + mean.total, mean.weight)
    return found[0] if len(found) == 1 else MeanSum(tuple(found))


def _scalar(operator: str, value: Any) -> Any:
    """Return a number as a Python float or a 0-d array; refuse every other value."""
    if isinstance(value, mx.array):
        real = not mx.issubdtype(value.dtype, mx.complexfloating) and value.dtype != mx.bool_
        if value.ndim or not real:
            got = f"{value.dtype} of shape {value.shape}"
            raise TypeError(f"Mean: {operator} needs a real number or a 0-d array, got {got}")
        return value
    if isinstance(value, (bool, complex, str, bytes)) or getattr(value, "shape", ()) != ():
        raise _undefined(operator, value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _undefined(operator, value) from None
    if not math.isfinite(number):
        raise ValueError(f"Mean: {operator} needs a finite number, got {number}")
    return number


def _undefined(operator: str, value: Any) -> TypeError:
    return TypeError(
        f"Mean: {operator} is not defined with {type(value).__name__}: a Mean can be added to Means and "
        "numbers, and multiplied or divided by numbers; otherwise use mean.value"
    )
