"""Functions of the user, named `module:function`."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from purestep._core import checks
from purestep._loop.config import kinds
from purestep.cli.training.settings import CALLER

_LONGEST = 200  # characters of an error


def function(setting: str, text: str) -> Callable[..., Any]:
    """Return the function that `module:function` names, as `found` does; refuse what cannot be called."""
    call = found(setting, text)
    checks.function(CALLER, setting, call)
    return call


def found(setting: str, text: str) -> Any:
    """Return what `module:name` names. The module may be in the current directory.

    Args:
        setting: the name of the setting, for errors.
        text: `module:name`.

    Raises:
        ValueError: if there is no such name, or importing the module fails.
    """
    name, _, attribute = text.partition(":")
    if not name or not attribute:
        raise checks.error(CALLER, f"{setting} must be module:function, got {text!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing the user's module may raise anything
        raise checks.error(CALLER, f"{setting}: importing {name} failed ({named(error)})") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            close = kinds.nearest(attribute, vars(value)) if hasattr(value, "__dict__") else None
            hint = f"; did you mean {close}?" if close else ""
            raise checks.error(CALLER, f"{setting}: {name} has no {attribute}{hint}")
        value = getattr(value, part)
    return value


def made(setting: str, text: str, *arguments: Any) -> Any:
    """Return what a function of the user returns for these arguments.

    Raises:
        ValueError: if the function cannot be found or fails.
    """
    call = function(setting, text)
    try:
        return call(*arguments)
    except (Exception, SystemExit) as error:
        raise checks.error(CALLER, f"{setting}: {text} failed ({named(error)})") from error


@contextmanager
def blaming(setting: str, text: str | None) -> Iterator[None]:
    """Name the user's function in an error that its result raises. A `ValueError` passes: it is worded."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise checks.error(CALLER, f"{setting}: {text} failed ({named(error)})") from error


@contextmanager
def renaming(caller: str, prefix: str) -> Iterator[None]:
    """Put a setting in the place of the caller's name in an error of the library."""
    try:
        yield
    except (TypeError, ValueError) as error:
        said = str(error)
        if not said.startswith(f"{caller}: "):
            raise
        raise checks.error(CALLER, f"{prefix}: {said.removeprefix(f'{caller}: ')}") from None


def named(error: BaseException) -> str:
    """Return an error in one line, with the last line of code that is not the library's own."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{os.sep}purestep{os.sep}" not in file and "importlib" not in file:
            place = f", {os.path.basename(file)} line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {shortened(str(error))}{place}"


def shortened(text: str) -> str:
    """Return a text in one line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
