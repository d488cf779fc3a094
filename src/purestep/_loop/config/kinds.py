"""The types that a field may have, and values of these types from Python, files and the command line."""

import difflib
import math
from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args, get_origin

from purestep._core import checks

# What other libraries and habits call a field.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "steps": "max_steps",
    "iterations": "max_steps",
    "clip": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "clip_norm": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "accumulation": "grad_accumulation_steps",
    "scheduler": "lr_schedule",
    "compile": "compile_step",
    "precision": "dtype",
    "beta1": "b1",
    "beta2": "b2",
    "beta_1": "b1",
    "beta_2": "b2",
}
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NOTHING = "none"


def choices(kind: Any) -> tuple[str, ...]:
    """Return the allowed values of a `Literal`, and nothing for another type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def members(kind: Any) -> tuple[str, ...]:
    """Return the names that a list of names may hold, and nothing for another type.

    >>> members(tuple[Literal["a", "b"], ...])
    ('a', 'b')
    """
    return choices(get_args(kind)[0]) if get_origin(kind) is tuple else ()


def optional(kind: Any) -> tuple[Any, bool]:
    """Return a type without `None`, and whether it allows `None`.

    >>> optional(float | None), optional(int)
    ((<class 'float'>, True), (<class 'int'>, False))
    """
    if get_origin(kind) in (Literal, tuple):
        return kind, False
    inner = [each for each in get_args(kind) if each is not type(None)]
    return (inner[0], True) if inner else (kind, False)


def checked(caller: str, name: str, value: Any, kind: Any) -> Any:
    """Return a value of a field's type; an integer becomes a float where the type is float.

    Args:
        caller: for errors.
        name: the field, for errors.
        value: any value. A Boolean is not an integer, and a text is not a number.
        kind: int, float, bool, str, a `Literal` of texts, or one of these or `None`; or a tuple of such a
            `Literal`, whose value is any list of different choices.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a number that is not finite, and for a text that is not a choice.

    >>> checked("TrainConfig", "learning_rate", 1, float)
    1.0
    """
    kind, allows_none = optional(kind)
    if value is None and allows_none:
        return None
    if choices(kind):
        checks.one_of(caller, name, value, choices(kind))
        return value
    if members(kind):
        return _names(caller, name, value, members(kind))
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            said = "True or False" if kind is bool else "a string"
            raise TypeError(f"{caller}: {name} must be {said}, got {checks.shown(value)}")
        return value
    if kind is int:
        return checks.integer(caller, name, value)
    value = checks.python_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{caller}: {name} must be a number, got {checks.shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise checks.error(caller, f"{name} must be finite, got {checks.shown(value)}")
    return number


def parsed(caller: str, flag: str, text: str, kind: Any) -> Any:
    """Return the value that the text of a command line stands for.

    Args:
        caller: for errors.
        flag: the option as it was typed, for errors.
        text: `3e-4`, `100`, `true`, `adamw`, or `none` where the type allows `None`. A list of names is
            `one,two`, and `none` without any.
        kind: as in `checked`.

    Raises:
        ValueError: for a text that is no value of the type.

    >>> parsed("train", "--seed", "7", int), parsed("train", "--b1", "none", float | None)
    (7, None)
    """
    kind, allows_none = optional(kind)
    if allows_none and text.lower() == _NOTHING:
        return None
    if kind is bool:
        if not is_switch(text):
            raise checks.error(caller, f"{flag} must be true or false, got {text!r}")
        return text.lower() in _YES
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            said = "an integer" if kind is int else "a number"
            raise checks.error(caller, f"{flag} must be {said}, got {text!r:.80}") from None
    if choices(kind):
        checks.one_of(caller, flag, text, choices(kind))
    if members(kind):
        given = [] if text.lower() == _NOTHING else [name.strip() for name in text.split(",")]
        return _names(caller, flag, given, members(kind))
    return text


def _names(caller: str, name: str, value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list of different known names as a tuple."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{caller}: {name} must be a list of names, got {checks.shown(value)}")
    for index, each in enumerate(value):
        checks.one_of(caller, name, each, known)
        if each in value[:index]:
            raise checks.error(caller, f"{name} must hold each name once, got {each!r} twice")
    return tuple(value)


def is_switch(text: str) -> bool:
    """Tell whether a text of a command line stands for true or false."""
    return text.lower() in _YES + _NO


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that was probably meant, or `None`.

    >>> known = ("learning_rate", "max_steps")
    >>> nearest("learning_rat", known), nearest("lr", known), nearest("colour", known)
    ('learning_rate', 'learning_rate', None)
    """
    plain = name.lower().replace("-", "_")
    meant = _OTHER_NAMES.get(plain, plain)
    if meant in known:
        return meant
    close = difflib.get_close_matches(plain, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def refuse_unknown(caller: str, what: str, names: Iterable[Any], known: Collection[str]) -> None:
    """Refuse a name that is not known; the error has the nearest known name, or all names.

    Args:
        caller: for errors.
        what: what a name stands for, such as `field`.
        names: the given names.
        known: the allowed names.

    Raises:
        ValueError: for the first unknown name.
    """
    for name in names:
        if isinstance(name, str) and name in known:
            continue
        close = nearest(str(name), known)
        help_ = f"did you mean {close}?" if close else f"the {what}s are {', '.join(known)}"
        raise checks.error(caller, f"there is no {what} {str(name)[:60]!r}; {help_}")
