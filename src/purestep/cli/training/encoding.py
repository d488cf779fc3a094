"""The tokenizers of `train`: bytes, or one of the user's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from purestep._core import checks
from purestep._data.text import tokenizers
from purestep._data.text.windows import Characters
from purestep._loop.config import kinds
from purestep.cli.training import loading
from purestep.cli.training.settings import CALLER, Task


class Bytes:
    """A tokenizer whose tokens are the bytes of a text in UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text; bytes that are not UTF-8 are shown as a replacement character."""
        return bytes(tokens).decode(errors="replace")


class TurnBytes(Bytes):
    """Bytes, and the token 256, which ends a text and a turn of a conversation.

    >>> tokenizer = TurnBytes()
    >>> tokens = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    >>> tokenizer.decode(tokens), tokens[-1]
    ('user: hi\\n', 256)
    """

    vocab_size, eos_token_id = 257, 256

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text, with a line for each turn."""
        return super().decode([10 if token == self.eos_token_id else token for token in tokens])

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Return the turns, each `role: content` with the end, and the header of an answer."""
        tokens: list[int] = []
        for message in messages:
            content = message.get("content")
            if not isinstance(content, str):
                raise ValueError(f"a content must be a text for the tokenizer bytes, got {content!r:.60}")
            tokens += [*self.encode(f"{message['role']}: {content}"), self.eos_token_id]
        return tokens + (self.encode("assistant: ") if add_generation_prompt else [])


def tokenizer_of(task: Task, *, masked: bool) -> Any:
    """Return the tokenizer of the settings, or `None` for the characters of the text.

    Args:
        task: the settings.
        masked: the data are prompts with completions, or conversations.

    Raises:
        ValueError: if it cannot be made, or lacks a method.
    """
    name = task.tokenizer or ("bytes" if masked else "characters")
    if name == "characters":
        if masked or task.format == "tokens":
            what = "prompts and conversations" if masked else "a token file"
            raise checks.error(CALLER, f"tokenizer must be bytes or module:name for {what}, got {name!r}")
        return None
    if name == "bytes":
        return TurnBytes() if masked else Bytes()
    if ":" not in name:
        close = kinds.nearest(name, ("characters", "bytes"))
        hint = f"; did you mean {close}?" if close else ""
        raise checks.error(CALLER, f"tokenizer must be characters, bytes or module:name, got {name!r}{hint}")
    found = loading.found("tokenizer", name)
    if isinstance(found, type) or not callable(getattr(found, "encode", None)):
        found = loading.made("tokenizer", name)
    if not callable(getattr(found, "encode", None)):
        raise checks.error(CALLER, f"tokenizer must have a method encode, {name} made {found!r:.80}")
    if task.sample_tokens and not callable(getattr(found, "decode", None)):
        raise checks.error(
            CALLER, f"tokenizer must have a method decode to write samples, {name} made {found!r:.80}; "
            "--sample-tokens 0 writes none"
        )  # fmt: skip
    if tokenizers.size_of(found) is None and task.vocabulary is None:
        raise checks.error(CALLER, "vocabulary must be given: the tokenizer does not tell its size")
    return found


def decoder(task: Task, tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Return a function from tokens to a text; without a tokenizer, to their numbers."""
    if tokenizer is None:
        return lambda tokens: " ".join(map(str, tokens))
    if isinstance(tokenizer, Characters):
        return lambda tokens: "".join(tokenizer.symbols[token] for token in tokens)

    def decode(tokens: Sequence[int]) -> str:
        with loading.blaming("tokenizer", task.tokenizer):
            return str(tokenizer.decode(list(tokens)))

    return decode
