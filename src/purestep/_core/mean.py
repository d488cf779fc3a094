"""Means that can be merged exactly: a sum together with what it is over. And sums of such means."""

import math
from typing import Any, NamedTuple, NoReturn, TypeAlias

import mlx.core as mx

from purestep._core import sums

_SMALLEST = 2.0**-126  # of the normal float32 numbers: its inverse is still finite
_ONE = mx.array(1.0)  # the weight of every plain scalar, so that scalars are known to weigh the same


def _plus(self: Any, other: Any) -> Any:
    if isinstance(other, (Mean, MeanSum)):
        return _joined((*_terms(self), *_terms(other)))
    scalar = _scalar("+", self, other)
    if not isinstance(scalar, mx.array):
        return self if scalar == 0 else self + mx.array(scalar)
    return _joined((*_terms(self), Mean(scalar.astype(mx.float32), _ONE)))


def _minus(self: Any, other: Any) -> Any:
    return self + (-other if isinstance(other, (Mean, MeanSum)) else -_scalar("-", self, other))


def _minus_from(self: Any, other: Any) -> Any:
    return -self + _scalar("-", self, other)


def _negative(self: Any) -> Any:
    return self * -1.0


def _times(self: Any, other: Any) -> Any:
    factor = _scalar("*", self, other)
    return _joined(tuple(Mean(mean.total * factor, mean.weight) for mean in _terms(self)))


def _over(self: Any, other: Any) -> Any:
    divisor = _scalar("/", self, other)
    if not isinstance(divisor, mx.array) and divisor == 0:
        raise ZeroDivisionError("Mean: division by zero")
    return _joined(tuple(Mean(mean.total / divisor, mean.weight) for mean in _terms(self)))


def _refused(operator: str) -> Any:
    def refuse(self: Any, other: Any) -> NoReturn:
        raise _no(operator, other)

    return refuse


class Mean(NamedTuple):
    """A weighted mean kept as its two sums, so that parts merge to the mean of the whole.

    Averaging the means of parts of unequal size is wrong; adding their totals and weights is exact.
    Losses return a `Mean`, and microbatches, ranks and evaluation batches are merged through it.

    A mean times or divided by a number is a mean. A mean plus another, or plus a number, is a `MeanSum`,
    which keeps each term with its own weight; a number counts each part alike. Numbers are Python's or
    numpy's, or 0-d arrays. An array stands on the right, `mean * array`: MLX refuses the other order.

    >>> ce, aux = Mean(mx.array(6.0), mx.array(3.0)), Mean(mx.array(8.0), mx.array(2.0))
    >>> (ce + 0.5 * aux).value, (-ce / 4).value
    (array(4, dtype=float32), array(-0.5, dtype=float32))

    Attributes:
        total: 0-d float32, the weighted sum.
        weight: 0-d float32, the sum of the weights: real tokens, examples.
    """

    total: mx.array
    weight: mx.array

    @classmethod
    def of(cls, values: mx.array, weights: mx.array | None = None) -> "Mean":
        """Sum values, with weights of a shape that broadcasts to theirs, in float32.

        A value of zero weight is left out even when it is infinite or NaN.

        >>> Mean.of(mx.array([1.0, 2.0, 9.0]), mx.array([1.0, 1.0, 0.0])).value
        array(1.5, dtype=float32)
        """
        values = values.astype(mx.float32)
        if weights is None:
            return cls(sums.total(values), mx.array(float(values.size)))
        weights = mx.broadcast_to(weights.astype(mx.float32), values.shape)
        return cls(sums.total(mx.where(weights == 0, 0.0, values * weights)), sums.total(weights))

    @classmethod
    def merge(cls, first: Any, *others: Any) -> Any:
        """Return the mean over all the parts together, or the sum of means, each over its own parts.

        Raises:
            ValueError: if the parts are sums of different numbers of means.
        """
        parts = [_terms(part) for part in (first, *others)]
        counts = [len(part) for part in parts]
        if len(set(counts)) > 1:
            raise ValueError(f"Mean.merge: every part must be a sum of as many means, got {counts}")
        merged = []
        for term in zip(*parts, strict=True):
            total, weight = term[0]
            for mean in term[1:]:
                total, weight = total + mean.total, weight + mean.weight
            merged.append(cls(total, weight))
        return merged[0] if isinstance(first, Mean) else MeanSum(tuple(merged))

    @property
    def value(self) -> mx.array:
        """`total / weight`, 0-d float32; zero, not NaN, where both are zero."""
        return self.share(self.total)

    def share(self, total: mx.array) -> mx.array:
        """Divide any other sum over the same data, such as a gradient's, by the weight; `0 / 0` is zero."""
        return total * (1 / mx.maximum(self.weight, _SMALLEST))

    __array_ufunc__ = None  # a number of numpy's leaves arithmetic to the mean
    __add__ = __radd__ = _plus  # type: ignore[assignment]
    __sub__, __rsub__ = _minus, _minus_from
    __mul__ = __rmul__ = _times  # type: ignore[assignment]
    __truediv__, __rtruediv__ = _over, _refused("/")
    __neg__ = _negative
    __lt__, __le__ = _refused("<"), _refused("<=")  # type: ignore[assignment]
    __gt__, __ge__ = _refused(">"), _refused(">=")  # type: ignore[assignment]
    __eq__, __ne__ = _refused("=="), _refused("!=")  # type: ignore[assignment]
    __contains__ = _refused("in")  # type: ignore[assignment]
    __hash__ = tuple.__hash__


class MeanSum(NamedTuple):
    """A sum of means, each over its own weight, as `ce + 0.01 * aux` makes it; arithmetic as of a `Mean`.

    Merged term by term, so that it is exact over microbatches and evaluation batches. Means that share one
    weight array are one term.

    >>> loss = Mean(mx.array(6.0), mx.array(3.0)) + mx.array(0.5)
    >>> loss.value, Mean.merge(loss, loss).value
    (array(2.5, dtype=float32), array(2.5, dtype=float32))

    Attributes:
        terms: the means, coefficients within their totals; at least one.
    """

    terms: tuple[Mean, ...]

    @property
    def value(self) -> mx.array:
        """The sum of the values of the terms, 0-d float32."""
        return sum((mean.value for mean in self.terms[1:]), self.terms[0].value)

    @property
    def weight(self) -> mx.array:
        """The weight of the first term, which stands for the whole where one weight is asked for."""
        return self.terms[0].weight

    __array_ufunc__ = None
    __add__ = __radd__ = _plus  # type: ignore[assignment]
    __sub__, __rsub__ = _minus, _minus_from
    __mul__ = __rmul__ = _times  # type: ignore[assignment]
    __truediv__, __rtruediv__ = _over, _refused("/")
    __neg__ = _negative
    __lt__, __le__ = _refused("<"), _refused("<=")  # type: ignore[assignment]
    __gt__, __ge__ = _refused(">"), _refused(">=")  # type: ignore[assignment]
    __eq__, __ne__ = _refused("=="), _refused("!=")  # type: ignore[assignment]
    __contains__ = _refused("in")  # type: ignore[assignment]
    __hash__ = tuple.__hash__


AnyMean: TypeAlias = Mean | MeanSum


def map_terms(fn: Any, mean: AnyMean) -> AnyMean:
    """Apply `fn(Mean) -> Mean` to a mean, or to each term of a sum of means."""
    return fn(mean) if isinstance(mean, Mean) else MeanSum(tuple(fn(term) for term in mean.terms))


def _terms(mean: Any) -> tuple[Mean, ...]:
    if not isinstance(mean, (Mean, MeanSum)):
        raise TypeError(f"Mean.merge: parts must be Means, got {type(mean).__name__}")
    return (mean,) if isinstance(mean, Mean) else mean.terms


def _joined(terms: tuple[Mean, ...]) -> AnyMean:
    """Add up terms that share their weight array; a single term is a `Mean` again."""
    found: list[Mean] = []
    for mean in terms:
        at = next((i for i, have in enumerate(found) if have.weight is mean.weight), None)
        if at is None:
            found.append(mean)
        else:
            found[at] = Mean(found[at].total + mean.total, mean.weight)
    return found[0] if len(found) == 1 else MeanSum(tuple(found))


def _scalar(operator: str, mean: Any, value: Any) -> Any:
    """Return a number as a Python float or a 0-d array, and refuse everything else."""
    if isinstance(value, mx.array):
        real = not mx.issubdtype(value.dtype, mx.complexfloating) and value.dtype != mx.bool_
        if value.ndim or not real:
            got = f"{value.dtype} of shape {value.shape}"
            raise TypeError(f"Mean: {operator} needs a real number or a 0-d array, got {got}")
        return value
    if isinstance(value, (bool, complex, str, bytes)) or getattr(value, "shape", ()) != ():
        raise _no(operator, value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _no(operator, value) from None
    if not math.isfinite(number):
        raise ValueError(f"Mean: {operator} needs a finite number, got {number}")
    return number


def _no(operator: str, value: Any) -> TypeError:
    return TypeError(
        f"Mean: {operator} is not defined with {type(value).__name__}: a Mean is added to Means and numbers, "
        "and multiplied or divided by numbers; for anything else take mean.value"
    )
