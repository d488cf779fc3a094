"""Checks turn numbers of other libraries into Python numbers, and refuse other values."""

from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import checks
from tests.refusals import parts


class Size(IntEnum):
    SMALL = 3


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (2, 2),
        (0.5, 0.5),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (np.array(0.5, np.float32), 0.5),
        (np.array(7), 7),
        (Fraction(1, 2), 0.5),
        (Size.SMALL, 3),
    ],
)
def test_a_number_of_any_library_becomes_pythons(value, want):
    got = checks.number("where", "name", value, least=0, most=10)
    assert (got, type(got)) == (want, type(want))
    assert checks.is_number(value)


@pytest.mark.parametrize("value", [np.int64(7), np.array(7), np.uint8(7), 7])
def test_an_integer_too(value):
    got = checks.integer("where", "name", value, least=1)
    assert (got, type(got)) == (7, int)


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.bool_(True),
        np.array(True),
        np.array([0.5]),
        np.complex64(1),
        1j,
        "1",
        None,
        Decimal("0.5"),
        [1],
    ],
)
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(TypeError, match="where: name .* number, got"):
        checks.number("where", "name", value)
    with pytest.raises(TypeError, match="where: name .* integer, got"):
        checks.integer("where", "name", value)
    assert not checks.is_number(value)


@pytest.mark.parametrize(
    ("bound", "value", "rule"),
    [
        ({"above": 0}, 0.0, "greater than 0"),
        ({"least": 0}, -1.0, "at least 0"),
        ({"below": 1}, 1.0, "less than 1"),
        ({"most": 1}, 1.5, "at most 1"),
    ],
)
def test_bounds_hold_for_them_too_and_are_stated(bound, value, rule):
    with pytest.raises(ValueError, match=parts(f"where: name ... {rule}, got {value}")):
        checks.number("where", "name", np.float32(value), **bound)


def test_numbers_of_other_libraries_are_refused_by_the_same_rules():
    with pytest.raises(ValueError, match=r"where: name .* finite, got nan"):
        checks.number("where", "name", np.float32("nan"))
    with pytest.raises(TypeError, match=r"where: name .* integer, got 1.0"):
        checks.integer("where", "name", np.float32(1))


def test_an_array_passes_unread():
    value = mx.array(0.5)
    assert checks.number("where", "name", value, least=1) is value
    assert not checks.is_number(value)
