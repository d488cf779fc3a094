"""What the library calls of a tokenizer: Hugging Face's, mlx-lm's, tiktoken's or one's own."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Anything with `encode`; chat records also need `apply_chat_template`.

    `eos_token_id`, `bos_token_id` and the size of the vocabulary are used if they exist.
    """

    def encode(self, text: str, /) -> Any:
        """Return the tokens of a text: integers, an integer array, or an object with `ids`."""
        ...


def check(caller: str, tokenizer: Any) -> None:
    """Refuse an object without `encode`."""
    if not callable(getattr(tokenizer, "encode", None)):
        raise TypeError(f"{caller}: tokenizer must have a method encode, got {type(tokenizer).__name__}")


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text alone, without those that mark its beginning and end.

    >>> class Bytes:
    ...     def encode(self, text):
    ...         return list(text.encode())
    >>> tokens_of(Bytes(), "ab")
    [97, 98]
    """
    if takes(tokenizer.encode, "add_special_tokens"):
        return listed(tokenizer.encode(text, add_special_tokens=False))
    return listed(tokenizer.encode(text))


def listed(tokens: Any) -> list[int]:
    """Return tokens as a list, from any of the forms in which tokenizers return them."""
    if isinstance(tokens, Mapping):
        tokens = tokens["input_ids"]
    tokens = getattr(tokens, "ids", tokens)  # an Encoding of the library `tokenizers`
    return tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)


def takes(function: Any, name: str) -> bool:
    """Tell whether a function has an argument of a name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def beginning(tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer itself puts before a text: `[bos_token_id]`, or none."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or not takes(tokenizer.encode, "add_special_tokens"):
        return []
    return [bos] if listed(tokenizer.encode("", add_special_tokens=True))[:1] == [bos] else []


def ending(tokenizer: Any) -> list[int]:
    """Return the token that ends a text, `[eos_token_id]`, or none if the tokenizer has none."""
    eos = getattr(tokenizer, "eos_token_id", None)
    return [] if eos is None else [eos]


def name_of(tokenizer: Any) -> str:
    """Return a name for a description: the model it belongs to, otherwise the class."""
    name = getattr(tokenizer, "name_or_path", None) or getattr(tokenizer, "name", None)
    return name if isinstance(name, str) and name else type(tokenizer).__name__


def size_of(tokenizer: Any) -> int | None:
    """Return the number of tokens, including added ones, or `None` if the tokenizer does not tell."""
    found = [getattr(tokenizer, name, None) for name in ("vocab_size", "n_vocab", "symbols")]
    if hasattr(type(tokenizer), "__len__") and not issubclass(type(tokenizer), tuple):
        found.append(len(tokenizer))
    if callable(getattr(tokenizer, "get_vocab_size", None)):
        found.append(tokenizer.get_vocab_size())
    counts = [len(each) if isinstance(each, str) else each for each in found]
    return max((count for count in counts if type(count) is int), default=None)
