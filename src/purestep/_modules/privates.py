"""The arrays of a module that `Module.parameters` does not name: under `_names`, and in plain objects."""

from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._modules.contents import Contents, Place
from purestep._modules.slots import Slot


class PrivateSlot(Slot):
    """A slot of an array that has no path in `Module.parameters`: of a private name, or in an object."""

    path: str = ""

    def write(self, value: Any) -> None:
        if isinstance(self.container, (dict, list)):
            self.container[self.key] = value
        else:
            object.__setattr__(self.container, self.key, value)

    def read(self) -> Any:
        if isinstance(self.container, (dict, list)):
            return self.container[self.key]
        return getattr(self.container, self.key)


def private_arrays(where: list[Place], image: Contents) -> list[tuple[PrivateSlot, mx.array]]:
    """Return the arrays that the image holds, each with its place."""
    found: list[tuple[PrivateSlot, mx.array]] = []
    for place, (items, attributes) in zip(where, image, strict=True):
        entries = [(key, x, place.node) for key, x in attributes.items()]
        if isinstance(items, dict):
            entries += [(key, x, place.node) for key, x in items.items()]
        elif isinstance(place.node, list):
            entries += [(index, x, place.node) for index, x in enumerate(items)]
        for key, value, node in entries:
            if isinstance(value, mx.array):
                slot = PrivateSlot(node, key)
                slot.path = tree.join(place.path, str(key))
                found.append((slot, value))
    return found
