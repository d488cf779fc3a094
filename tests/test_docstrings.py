"""Every argument of a transform or an optimizer is documented in its docstring."""

import inspect
import re

import pytest

from purestep import optimizers, transforms

FUNCTIONS = [
    value
    for namespace in (transforms, optimizers)
    for value in (getattr(namespace, name) for name in namespace.__all__)
    if inspect.isfunction(value)
]


def documented(function):
    """Return the names on the left of the section `Args`; several may share a line."""
    _, _, section = inspect.cleandoc(function.__doc__).partition("\nArgs:\n")
    section = section.partition("\n\n")[0]
    return re.sub(r"\s", "", ",".join(re.findall(r"^ {4}(\w[\w, ]*):", section, re.MULTILINE))).split(",")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_argument_is_documented_once(function):
    arguments = set(inspect.signature(function).parameters)
    names = documented(function)
    if names != [""]:  # short pieces explain their arguments in the first line
        assert len(names) == len(set(names))
        assert set(names) == arguments
