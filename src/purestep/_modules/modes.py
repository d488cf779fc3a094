"""Training and evaluation mode of a module's parts while `apply` runs it."""

from typing import Any

import mlx.nn as nn

from purestep._core import checks


class Guard:
    """Stands in a copy, while `apply` does not run it, for what only `apply` has: arrays and the mode."""

    def __init__(self, path: str):
        self._path = path

    def _refuse(self) -> ValueError:
        return checks.error(
            "apply",
            f"{self._path} was used after apply had returned, as by a function under mx.checkpoint that "
            "runs again for the gradient: call it as mx.checkpoint, or nn.utils.checkpoint, in the forward "
            "pass",
        )

    def __bool__(self) -> bool:
        raise self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refuse()


class Asked:
    """The evaluation mode, which notes that a layer asked for it."""

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
    """Return the parts that stay in evaluation mode: those in it while others are not."""
    parts = module.modules()
    resting = [part for part in parts if not part.training]
    return [] if len(resting) == len(parts) else resting


def set_modes(parts: list[nn.Module], resting: list[nn.Module], mode: Any) -> None:
    """Put every part into a mode, but the resting ones into evaluation."""
    for part in parts:
        part.train(mode) if type(part).train is not nn.Module.train else part._set_training_mode(mode)
    for part in resting:
        part._set_training_mode(False)
