"""The hyperparameters of a run as flat, plain values."""

from collections.abc import Collection, Mapping
from typing import Any

from purestep._core import checks
from purestep._loop.config.config import TrainConfig


def flat(caller: str, config: Any) -> dict[str, Any]:
    """Return the fields of a configuration by dotted names.

    Args:
        caller: for errors.
        config: a `TrainConfig`, or a mapping of names to numbers, Booleans, texts, `None`, lists of those
            (returned as text) and further mappings.

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
    waiting = [("", config)]
    while waiting:
        prefix, table = waiting.pop(0)
        for name, value in table.items():
            if not isinstance(name, str) or not name:
                raise TypeError(
                    f"{caller}: config must have names that are strings, got {checks.shown(name)}"
                )
            path = f"{prefix}{name}"
            if isinstance(value, Mapping):
                waiting.append((f"{path}.", value))
            else:
                found[path] = _plain(caller, path, value)
    return found


def _plain(caller: str, path: str, value: Any) -> Any:
    value = checks.python_number(value)
    if value is None or isinstance(value, (bool, int, float, str)):
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
