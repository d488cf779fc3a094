"""A warning for hyperparameters that differ between a restored state and its template."""

import warnings
from collections.abc import Collection

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Tree
from purestep._transforms.wrappers.hyperparameters import constants


class HyperparameterWarning(UserWarning):
    """A restored state has another constant hyperparameter, such as a learning rate, than its template."""


def warn_of_others(caller: str, source: str, restored: Tree, like: Tree, taken: Collection[str]) -> None:
    """Warn of stored constants that differ from the template, and say how to use either.

    Args:
        caller: the public name that the user called.
        source: the name of the stored state in messages.
        restored: built as `like` is.
        like: the template.
        taken: the paths whose arrays come from the stored state.
    """
    stored = constants(restored)
    lines, values = [], []
    for key, (path, wanted) in constants(like).items():
        found = stored[key][1]
        if path in taken and not mx.array_equal(found, wanted, equal_nan=True).item():
            lines.append(f"{path} is {_shown(found)}; like has {_shown(wanted)}, which is not used")
            values.append((key, _shown(wanted)))
    if not lines:
        return
    if len(values) == 1 and values[0][0].isidentifier():
        change = f"{values[0][0]}={values[0][1]}"
    else:
        change = "{" + ", ".join(f"{key!r}: {value}" for key, value in values) + "}"
    warnings.warn(
        f"{caller}: {source}:\n  "
        + "\n  ".join(lines)
        + f"\nTo use the values of like: state = ps.set_hyperparameters(state, {change}). "
        "To keep the stored values without this warning: build like with them",
        HyperparameterWarning,
        stacklevel=checks.users_level(),
    )


def _shown(value: mx.array) -> str:
    """Return the shortest number that reads back as this value, or the numbers of a population's members."""
    if value.ndim:
        return f"mx.array({value.tolist()})"
    number = float(value.item())  # type: ignore[arg-type]
    for digits in range(1, 17):
        text = f"{number:.{digits}g}"
        if mx.array(float(text), value.dtype).item() == number:
            return text
    return repr(number)
