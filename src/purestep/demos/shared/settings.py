"""Checks of the settings of a run, given as options or read from `run.json`."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

SettingsT = TypeVar("SettingsT", bound=Any)

MOST_STEPS = 2**31 - 1  # a state counts its steps in int32
_KINDS = {int: "an integer", bool: "true or false", str: "a string"}


def flag(name: str) -> str:
    """Return the option of a setting, as it is typed.

    >>> flag("seed"), flag("compile")
    ('--seed', '--no-compile')
    """
    return "--no-compile" if name == "compile" else f"--{name}"


def out_of_range(steps: int, seed: int, seeds: int = 2**64) -> str | None:
    """Return the first error in the numbers that every demo has, or `None`.

    Args:
        steps: at least 1 and at most `MOST_STEPS`.
        seed: at least 0 and less than `seeds`.
        seeds: the number of valid seeds.

    >>> out_of_range(0, 5)
    '--steps must be at least 1, got 0'
    >>> out_of_range(1, 2**64)
    '--seed must be less than 18446744073709551616, got 18446744073709551616'
    """
    if steps < 1:
        return f"--steps must be at least 1, got {steps}"
    if steps > MOST_STEPS:
        return f"--steps must be at most {MOST_STEPS}, got {steps}"
    if seed < 0:
        return f"--seed must be at least 0, got {seed}"
    if seed >= seeds:
        return f"--seed must be less than {seeds}, got {seed}"
    return None


def damage(facts: Any, name: str, kind: type) -> str | None:
    """Return the first error in the facts of `run.json`, or `None`.

    Args:
        facts: any JSON value.
        name: the name of the running demo.
        kind: the dataclass of its settings.

    >>> damage({}, "text", object)
    "'demo' must be the name of a demo, got nothing"
    """
    if not isinstance(facts, dict):
        return f"it must hold an object, got {_shown(facts)}"
    if not isinstance(facts.get("demo"), str):
        return f"'demo' must be the name of a demo, got {_shown(facts.get('demo'))}"
    if facts["demo"] != name:
        return None  # the facts of another demo are not checked
    settings = facts.get("settings")
    if not isinstance(settings, dict):
        return f"'settings' must be an object, got {_shown(settings)}"
    fields = {field.name: cast(Any, field.type) for field in dataclasses.fields(kind)}
    odd = sorted(fields.keys() ^ settings.keys())
    if odd:
        return f"'settings' must hold {', '.join(fields)}: {_shown(odd[0])} is {_which(odd[0] in fields)}"
    for key, wanted in fields.items():
        value = settings[key]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            said = _KINDS.get(wanted, "a string or null")
            return f"'settings.{key}' must be {said}, got {_shown(value)}"
    computed_by = facts.get("computed_by")
    if not isinstance(computed_by, dict) or not all(isinstance(value, str) for value in computed_by.values()):
        return f"'computed_by' must be an object of strings, got {_shown(computed_by)}"
    return None


def agreed(
    facts: Mapping[str, Any], name: str, kind: type[SettingsT], given: Mapping[str, Any], path: str
) -> SettingsT:
    """Return the settings that a run began with.

    Args:
        facts: the content of `run.json`, without `damage`.
        name: the name of the running demo.
        kind: the dataclass of its settings.
        given: the settings given now.
        path: the directory of the run, for messages.

    Raises:
        ValueError: if it is a run of another demo, or if an option differs from its settings.
    """
    if facts["demo"] != name:
        raise ValueError(f"demo: {path} holds a run of {_name(facts['demo'])}, not of {name}")
    begun = facts["settings"]
    for key, value in given.items():
        if begun[key] == value:
            continue
        said = f"{flag(key)} is given" if key == "compile" else f"{flag(key)} is {value!r}"
        was = "without it" if key == "compile" else f"with {begun[key]!r}"
        raise ValueError(
            f"demo: {said}, the run in {path} began {was}: "
            "leave it out to resume, or start another run in another directory"
        )
    return kind(**begun)


def _name(text: str) -> str:
    return text if text.isidentifier() and len(text) < 20 else _shown(text)


def _which(missing: bool) -> str:
    return "missing" if missing else "unknown"


def _shown(value: Any) -> str:
    """Return JSON of at most 40 characters."""
    try:
        text = "nothing" if value is None else json.dumps(value)
    except RecursionError:
        text = "something deeply nested"
    return text if len(text) <= 40 else f"{text[:37]}..."
