"""The hyperparameters of a run as flat, plain values."""

from collections.abc import Collection, Mapping
from typing import Any

from purestep._core import checks
from purestep._core.escaping import encodable, printable
from purestep._loop.config.config import TrainConfig

_DEEPEST = 32  # mappings within mappings; one that holds itself has no end


def flat(caller: str, config: Any) -> dict[str, Any]:
    """Return the fields of a configuration by dotted names.

    Args:
        caller: for errors.
        config: a `TrainConfig`, or a mapping of names to numbers, Booleans, texts, `None`, lists of those
            (returned as text) and further mappings. Control characters in names are escaped.

    Raises:
        TypeError: if a name or a value has another type.
        ValueError: if two settings have the same dotted name, or mappings are nested without end.

    >>> flat("wandb", {"model": {"width": 64}, "seed": 0})
    {'seed': 0, 'model.width': 64}
    """
    if config is None:
        return {}
    if isinstance(config, TrainConfig):
        return config.to_dict()
    if not isinstance(config, Mapping):
        raise TypeError(
            f"{caller}: config must be a TrainConfig or a mapping, got {checks.shown(config):.80}"
        )
    found: dict[str, Any] = {}
    waiting = [("", config, 1)]
    while waiting:
        prefix, table, depth = waiting.pop(0)
        if depth > _DEEPEST:
            raise checks.error(
                caller, f"config must have at most {_DEEPEST} levels, got more below {prefix:.40}"
            )
        for name, value in table.items():
            if not isinstance(name, str) or not name:
                raise TypeError(
                    f"{caller}: config must have names that are strings, got {checks.shown(name)}"
                )
            path = f"{prefix}{printable(name)}"
            if isinstance(value, Mapping):
                waiting.append((f"{path}.", value, depth + 1))
            elif path in found:
                raise checks.error(caller, f"config must have each name once, got {path!r} twice")
            else:
                found[path] = _plain(caller, path, value)
    return found


def _plain(caller: str, path: str, value: Any) -> Any:
    value = checks.python_number(value)
    if isinstance(value, str):
        return encodable(value, "utf-8")  # a lone surrogate
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return str([_plain(caller, path, each) for each in value])
    rule = "must be a number, a Boolean, a text, None, or a list or mapping of those"
    raise TypeError(f"{caller}: config.{path} {rule}, got {checks.shown(value):.80}")


def options_of(caller: str, options: Mapping[str, Any] | None, own: Collection[str]) -> dict[str, Any]:
    """Return further arguments of a library's own function; refuse those that the tracker sets."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"{caller}: options must be a mapping, got {checks.shown(options):.80}")
    for name in options:
        if name in own:
            raise checks.error(caller, f"options must not have {name!r}, which the tracker sets")
    return dict(options)
