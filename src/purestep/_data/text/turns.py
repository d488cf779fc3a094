"""Prompts and completions as tokens with masks, from texts and from conversations."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from purestep._core import checks
from purestep._data.core.tokens import token_of
from purestep._data.text import tokenizers


class Writer(NamedTuple):
    """Writes tokens and masks.

    Attributes:
        caller: as in `checks.error`.
        tokenizer: any object with `encode`.
        beginning: the tokens before a text.
        ending: the tokens after a text.
    """

    caller: str
    tokenizer: Any
    beginning: list[int]
    ending: list[int]

    @classmethod
    def of(cls, caller: str, tokenizer: Any, end_token: Any) -> "Writer":
        """Check a tokenizer and find its marks."""
        tokenizers.check(caller, tokenizer)
        if end_token == "eos":
            ending = [token_of(caller, "eos_token_id", token) for token in tokenizers.ending(tokenizer)]
        elif end_token is None:
            ending = []
        elif isinstance(end_token, str):
            raise checks.error(caller, f'end_token must be a token, "eos" or None, got {end_token!r}')
        else:
            ending = [token_of(caller, "end_token", end_token)]
        return cls(caller, tokenizer, tokenizers.beginning(tokenizer), ending)

    def text(self, where: str, field: str, text: str) -> tuple[list[int], list[int]]:
        """Return a text, all of which is learned."""
        tokens = self._tokens(where, text)
        if not tokens:
            raise checks.error(self.caller, f"{where}: {field} must not be empty, got {text!r}")
        tokens = [*self.beginning, *tokens, *self.ending]
        return tokens, [1] * len(tokens)

    def completion(self, where: str, field: str, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Return a prompt and its completion, of which the completion is learned.

        The tokens of the prompt are those of the prompt alone, as in generation. Those of the completion are
        taken from both texts together if these begin with the tokens of the prompt.
        """
        before = self._tokens(where, prompt)
        together = self._tokens(where, prompt + completion)
        if together[: len(before)] == before:
            after = together[len(before) :]
        else:
            after = self._tokens(where, completion)
        if not after:
            raise checks.error(self.caller, f"{where}: {field} must not be empty, got {completion!r}")
        start, after = [*self.beginning, *before], [*after, *self.ending]
        return start + after, [0] * len(start) + [1] * len(after)

    def conversation(
        self, where: str, field: str, messages: Sequence[Mapping[str, Any]], first: int, tools: Any = None
    ) -> tuple[list[int], list[int]]:
        """Return a conversation, of which the assistant's turns from number `first` on are learned.

        A turn is what follows the tokens of the conversation before it with the header of an answer, as the
        model sees them in generation. So a template must only add tokens at the end when a turn is added.
        """
        turns = [
            number
            for number, message in enumerate(messages)
            if message["role"] == "assistant" and number >= first
        ]
        if not turns:
            raise checks.error(self.caller, f"{where}: {field} must have a turn of the assistant to learn")
        whole = self._chat(where, messages, tools)
        mask = [0] * len(whole)
        for number in turns:
            if number == 0:
                raise checks.error(
                    self.caller, f"{where}: {field} must begin with a turn of the user or the system"
                )
            if not messages[number].get("content") and not messages[number].get("tool_calls"):
                raise checks.error(self.caller, f"{where}: turn {number} of {field} must not be empty")
            before = self._chat(where, messages[:number], tools, add_generation_prompt=True)
            after = self._chat(where, messages[: number + 1], tools)
            if whole[: len(after)] != after or after[: len(before)] != before or len(after) == len(before):
                raise checks.error(
                    self.caller,
                    f"{where}: the chat template must keep the tokens of earlier turns when turn {number} of "
                    f"{field} is added, got other tokens from position "
                    f"{min(_common(whole, after), _common(after, before))}: the tokens to learn are unknown",
                )
            mask[len(before) : len(after)] = [1] * (len(after) - len(before))
        return whole, mask

    def _chat(
        self,
        where: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Any,
        *,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        apply = getattr(self.tokenizer, "apply_chat_template", None)
        if not callable(apply):
            raise TypeError(
                f"{self.caller}: {where}: tokenizer must have a method apply_chat_template for messages, "
                f"got {type(self.tokenizer).__name__}"
            )
        options = {} if tools is None else {"tools": tools}
        try:
            tokens = apply(
                [dict(message) for message in messages],
                tokenize=True,
                add_generation_prompt=add_generation_prompt,
                **options,
            )
        except Exception as error:
            raise checks.error(
                self.caller,
                f"{where}: the chat template must accept the messages, got {type(error).__name__}: {error}",
            ) from error
        if isinstance(tokens, str):
            return self._tokens(where, tokens)
        return tokenizers.listed(tokens)

    def _tokens(self, where: str, text: str) -> list[int]:
        """Return the tokens of a text; an error of the tokenizer names the record."""
        try:
            return tokenizers.tokens_of(self.tokenizer, text)
        except Exception as error:
            raise checks.error(
                self.caller,
                f"{where}: the tokenizer must accept the text, got {type(error).__name__}: {error}",
            ) from error


def messages_of(caller: str, where: str, field: str, value: Any) -> list[Mapping[str, Any]]:
    """Return a value that must be the messages of a conversation."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        kind = "no messages" if isinstance(value, Sequence) and not value else type(value).__name__
        raise checks.error(caller, f"{where}: {field} must be a list of messages, got {kind}")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise checks.error(
                caller,
                f"{where}: message {number} of {field} must have a role and a content, got {message!r}",
            )
        if "content" not in message and "tool_calls" not in message:
            raise checks.error(
                caller, f"{where}: message {number} of {field} must have a content, got {dict(message)!r}"
            )
    return list(value)


def _common(one: list[int], other: list[int]) -> int:
    """Return the number of equal tokens at the beginning of both."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same)
