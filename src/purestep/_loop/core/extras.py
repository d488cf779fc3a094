"""Libraries that are extras: imported when a callback that needs them is made."""

import importlib
from typing import Any


def load(caller: str, module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Raises:
        ImportError: if a library is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        raise ImportError(
            f"{caller}: {error.name} is not installed; pip install 'purestep[{extra}]'", name=error.name
        ) from None
