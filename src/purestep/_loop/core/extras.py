"""Modules that need an extra: they are imported when they are used."""

import importlib
from typing import Any


def extra(caller: str, module: str, name: str) -> Any:
    """Import a module of the library that needs an extra.

    Raises:
        ImportError: with the command that installs the extra, if one of its packages is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        raise ImportError(
            f"{caller}: {error.name} is not installed; pip install 'purestep[{name}]'", name=error.name
        ) from None
