"""Examples: tokens with a mask of those to learn, and the rules for examples that are too long."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from purestep._core import checks
from purestep._data.core.tokens import tokens_of

Long: TypeAlias = Literal["refuse", "truncate", "drop"]
LONG: tuple[Long, ...] = get_args(Long)


class Example(NamedTuple):
    """One sequence of tokens.

    Attributes:
        tokens: integers, [length].
        mask: 1 for each token that the model learns to predict, otherwise 0; [length].

    >>> Example([5, 6, 7], [0, 1, 1]).mask
    [0, 1, 1]
    """

    tokens: Sequence[int]
    mask: Sequence[int]


class Examples(NamedTuple):
    """The examples of some records.

    Attributes:
        examples: those that were kept, in the order of the records.
        dropped: the number of records that were too long and left out.
        truncated: the number of examples that were shortened.

    >>> Examples([Example([5, 6], [0, 1])], dropped=3, truncated=0).dropped
    3
    """

    examples: list[Example]
    dropped: int
    truncated: int


def compact(caller: str, where: str, tokens: list[int], mask: list[int]) -> Example:
    """Return an example in 5 bytes a token; refuse one without a token to learn, and what is not a token.

    >>> compact("tokenize_records", "record 0", [5, 6], [0, 1])
    Example(tokens=array('i', [5, 6]), mask=b'\\x00\\x01')
    """
    found = tokens_of(caller, f"{where}: the tokenizer's output", tokens)
    if not any(mask[1:]):
        raise checks.error(
            caller,
            f"{where}: the record must have a token to learn after its first one, got {len(found)} tokens "
            "without one",
        )
    return Example(found, bytes(mask))


def fitted(caller: str, where: str, example: Example, context: int | None, long: Long) -> Example | None:
    """Return an example of at most `context` tokens, or `None` if it is to be dropped.

    Raises:
        ValueError: if it is too long and `long` is "refuse", or if no token to learn is left of it.
    """
    if context is None or len(example.tokens) <= context:
        return example
    if long == "drop":
        return None
    if long == "refuse":
        raise checks.error(
            caller,
            f"{where}: the record must have at most context={context} tokens, got {len(example.tokens)}; "
            'long="truncate" or long="drop" accepts it',
        )
    if not any(example.mask[1:context]):
        raise checks.error(
            caller,
            f"{where}: the prompt must leave room for the completion in context={context} tokens, got a "
            f"record of {len(example.tokens)} tokens whose first {context} are all prompt; "
            'long="drop" leaves it out',
        )
    return Example(example.tokens[:context], example.mask[:context])
