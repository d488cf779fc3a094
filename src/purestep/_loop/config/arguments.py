"""Fields from a command line: `--name value`, `--name=value`, `--name`, `--no-name`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from purestep._core import checks
from purestep._loop.config import kinds


def parse(caller: str, argv: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a command line sets. A field that is set twice has its last value.

    Args:
        caller: for errors.
        argv: the arguments. Names may have dashes or underscores. A Boolean field is set by `--name`,
            `--no-name` or `--name false`.
        fields: the types of the known fields by name.

    Raises:
        ValueError: for an unknown name, a missing value, a value of another type, or an argument that is
            not an option.

    >>> parse("train", ["--max-steps=10", "--no-compile-step"], {"max_steps": int, "compile_step": bool})
    {'max_steps': 10, 'compile_step': False}
    """
    texts = isinstance(argv, Iterable) and all(isinstance(each, str) for each in argv)
    if isinstance(argv, str) or not texts:
        raise TypeError(f"{caller}: argv must be a sequence of strings, got {checks.shown(argv)}")
    found: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        given = rest.pop(0)
        flag, equals, text = given.partition("=")
        if not flag.startswith("--") or len(flag) < 3:
            raise checks.error(caller, f"options must be --name value, got {given!r:.80}")
        name = flag[2:].replace("-", "_")
        positive = name.removeprefix("no_")
        if name not in fields and positive in fields and fields[positive] is bool:
            if equals:
                raise checks.error(caller, f"{flag} takes no value, got {text!r:.80}")
            found[positive] = False
            continue
        kinds.refuse_unknown(caller, "option", [name], fields)
        if not equals:
            following = bool(rest) and not (rest[0].startswith("--") and len(rest[0]) > 2)
            if fields[name] is bool and not (following and kinds.is_switch(rest[0])):
                found[name] = True
                continue
            if not following:
                raise checks.error(caller, f"{flag} needs a value")
            text = rest.pop(0)
        found[name] = kinds.parsed(caller, flag, text, fields[name])
    return found
