"""Replace attributes of modules while any thread is in a block."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Replacement:
    """Values that stand in place of attributes; the values of before return when the last block ends.

    Blocks may overlap, in one thread or in several. A replacement must work in threads that are in no block.
    """

    def __init__(self, owner: Any, **values: Any):
        self._owner, self._values = owner, values
        self._before: dict[str, Any] = {}
        self._open = 0
        self._lock = threading.Lock()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Keep the values in place within the block."""
        with self._lock:
            if not self._open:
                self._before = {name: getattr(self._owner, name) for name in self._values}
                self._set(self._values)
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._set(self._before)

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self._owner, name, value)
