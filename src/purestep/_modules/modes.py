"""Training and evaluation modes of a module's parts while `apply` runs it."""

from typing import Any

import mlx.nn as nn

from purestep._core import checks

_OF_MLX: Any = nn.Module._set_training_mode, nn.Module.__setattr__


class Guard:
    """A placeholder for arrays and mode of a copied module while `apply` does not run; any use raises."""

    def __init__(self, path: str):
        self._path = path

    def _refuse(self) -> ValueError:
        return checks.error(
            "apply",
            f"{self._path} was used after apply had returned, as happens when a function under mx.checkpoint "
            "runs again for the gradient: call mx.checkpoint, or nn.utils.checkpoint, in the forward pass",
        )

    def __bool__(self) -> bool:
        raise self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refuse()


class Asked:
    """A false value for the mode (evaluation) that records whether a layer has read it."""

    def __init__(self) -> None:
        self.seen = False

    def __bool__(self) -> bool:
        self.seen = True
        return False

    def __int__(self) -> int:
        return int(bool(self))

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    def __hash__(self) -> int:
        return hash(False)


def held_back(module: nn.Module) -> list[nn.Module]:
    """Return the parts in evaluation mode, which will stay in it; an empty list if all parts are."""
    parts = module.modules()
    resting = [part for part in parts if not part.training]
    return [] if len(resting) == len(parts) else resting


def set_modes(parts: list[nn.Module], resting: list[nn.Module], mode: Any) -> None:
    """Set the mode of every part, and evaluation mode for the resting parts."""
    for part in parts:
        kind = type(part)
        if kind.train is not nn.Module.train:
            part.train(mode)
        elif (kind._set_training_mode, kind.__setattr__) != _OF_MLX:
            part._set_training_mode(mode)
        else:
            vars(part)["_training"] = mode  # as the method does, but not by `Module.__setattr__`
    for part in resting:
        part._set_training_mode(False)
