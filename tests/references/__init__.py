"""Numbers recorded from other libraries, and the scripts `make_*` that recorded them."""

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

DIRECTORY = Path(__file__).parent


def recorded(name: str) -> dict[str, Any]:
    """Return the arrays of one record by name, as numpy arrays."""
    return load_file(DIRECTORY / f"{name}.safetensors")
