"""Captures of Metal, which Xcode opens."""

import os
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks

_ENABLED = "MTL_CAPTURE_ENABLED"


def check_capture(caller: str, path: str | os.PathLike[str]) -> Path:
    """Return the path of a capture; refuse one that Metal could not write."""
    place = check_path(caller, path)
    if place.suffix != ".gputrace":
        raise checks.error(caller, f"capture must end in .gputrace, got {str(place)!r}")
    if not mx.metal.is_available():
        raise checks.error(caller, "capture needs Metal, which this installation of MLX does not have")
    if os.environ.get(_ENABLED) != "1":
        raise checks.error(caller, f"capture needs the environment variable {_ENABLED}=1 from the start")
    if place.exists():
        raise checks.error(caller, f"capture must be a new path, got {str(place)!r}, which exists")
    if not place.parent.is_dir():
        raise checks.error(caller, f"capture must lie in a directory, got {str(place)!r}")
    return place


class Capture:
    """A capture of Metal's commands, from `start` to `stop`. It waits for the device at both."""

    def __init__(self, caller: str, path: Path):
        self._caller, self._path, self._running = caller, path, False

    def start(self) -> None:
        """Start the capture. If Metal refuses, there is a warning, and the run goes on."""
        mx.synchronize()
        try:
            metal: Any = mx.metal
            metal.start_capture(str(self._path))
            self._running = True
        except (RuntimeError, ValueError) as error:
            warnings.warn(f"{self._caller}: {self._path} is not captured: {error}", stacklevel=2)

    def stop(self) -> None:
        """Stop the capture, if it runs."""
        if self._running:
            self._running = False
            mx.synchronize()
            metal: Any = mx.metal
            metal.stop_capture()
