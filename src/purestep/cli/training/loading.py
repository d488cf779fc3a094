"""Functions of the user, named `module:function`."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from purestep._core import checks
from purestep.cli.training.settings import CALLER


def function(setting: str, text: str) -> Callable[..., Any]:
    """Return the function that `module:function` names. The module may be in the current directory.

    Args:
        setting: the name of the setting, for errors.
        text: `module:function`.

    Raises:
        ValueError: if there is no such function, or importing the module fails.
    """
    name, _, attribute = text.partition(":")
    if not name or not attribute:
        raise checks.error(CALLER, f"{setting} must be module:function, got {text!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing the user's module may raise anything
        raise checks.error(CALLER, f"{setting}: importing {name} failed ({named(error)})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise checks.error(CALLER, f"{setting}: {name} has no {attribute}")
        found = getattr(found, part)
    checks.function(CALLER, setting, found)
    return found


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


def named(error: BaseException) -> str:
    """Return an error in one line, with the last line of code that is not the library's own."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{os.sep}purestep{os.sep}" not in file and "importlib" not in file:
            place = f", {os.path.basename(file)} line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"
