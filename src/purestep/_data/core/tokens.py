"""Checks of tokens and of their masks."""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from purestep._core import checks

LIMIT = 2**31  # tokens are int32 in batches


def token_of(caller: str, name: str, token: Any) -> int:
    """Return a token as a Python integer; refuse what is not an integer in [0, 2**31)."""
    token = checks.integer(caller, name, token, least=0)
    if token >= LIMIT:
        raise checks.error(caller, f"{name} must be less than 2**31, got {checks.shown(token)}")
    return token


def tokens_of(caller: str, name: str, tokens: Any) -> "array[int]":
    """Return a sequence of tokens in 4 bytes each; refuse what is not an integer in [0, 2**31).

    >>> tokens_of("pack", "sequences[0]", [5, -100])
    Traceback (most recent call last):
    ValueError: pack: sequences[0] must hold tokens in [0, 2**31), got -100 at position 1
    """
    if isinstance(tokens, str):
        raise TypeError(f"{caller}: {name} must be a sequence of tokens, got a str")
    try:
        ready = isinstance(tokens, array) and tokens.typecode == "i"
        found = (
            tokens if ready else array("i", tokens.tolist() if hasattr(tokens, "tolist") else list(tokens))
        )
    except (OverflowError, TypeError, ValueError):
        found = None
    if found is not None and (not found or min(found) >= 0):
        return found
    if found is None and not hasattr(tokens, "__iter__"):
        raise TypeError(f"{caller}: {name} must be a sequence of tokens, got {type(tokens).__name__}")
    position, token = next(each for each in enumerate(tokens) if not _is_token(each[1]))
    raise checks.error(
        caller, f"{name} must hold tokens in [0, 2**31), got {checks.shown(token)} at position {position}"
    )


def sequences_of(caller: str, sequences: Any) -> Any:
    """Return several sequences of tokens; refuse a result whose field `examples` was meant, and a text."""
    if hasattr(sequences, "examples"):
        found = type(sequences).__name__
        raise TypeError(f"{caller}: sequences must be a list of examples, got {found}; pass its examples")
    if isinstance(sequences, (str, bytes, Mapping)) or not isinstance(sequences, Iterable):
        raise TypeError(f"{caller}: sequences must be several sequences, got {type(sequences).__name__}")
    return sequences


def mask_of(caller: str, name: str, mask: Any, count: int) -> bytes:
    """Return the mask of some tokens in one byte each; refuse one of another length, or with other numbers.

    >>> mask_of("pack", "sequences[0]", [0, True, 1], 3)
    b'\\x00\\x01\\x01'
    """
    listed: Any = mask.tolist() if hasattr(mask, "tolist") else mask
    if not hasattr(listed, "__len__"):
        raise TypeError(f"{caller}: {name}.mask must be a sequence of numbers, got {type(mask).__name__}")
    if len(listed) != count:
        raise checks.error(
            caller, f"{name}.mask must have one number for each of {count} tokens, got {len(listed)}"
        )
    if not isinstance(listed, bytes):
        for position, value in enumerate(listed):
            if value not in (0, 1):
                raise checks.error(
                    caller, f"{name}.mask must hold 0 and 1 only, got {value!r} at position {position}"
                )
        return bytes(int(value) for value in listed)
    if listed.strip(b"\0\1"):
        raise checks.error(caller, f"{name}.mask must hold 0 and 1 only, got {max(listed)}")
    return listed


def _is_token(value: Any) -> bool:
    try:
        return array("i", [value])[0] >= 0
    except (OverflowError, TypeError):
        return False
