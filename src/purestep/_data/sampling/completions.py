"""Prompts and their sampled completions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks


class Completions(NamedTuple):
    """Prompts and their completions; each row holds a prompt, its completion, and padding.

    Attributes:
        tokens: int32 [n, length].
        completion_mask: float32 [n, length - 1], aligned with `tokens[:, 1:]`: 1 on sampled tokens,
            including the stop token, 0 on prompt and padding.
        logps: float32 [n, length - 1], the log-probability of each sampled token, 0 elsewhere; `None` at
            temperature 0, which does not sample.
        truncated: float32 [n], 1 if `max_tokens` was reached before a stop token; 0 everywhere if there
            are no stop tokens.

    >>> mask = mx.array([[0.0, 1.0, 1.0, 0.0]])
    >>> Completions(mx.array([[1, 2, 5, 9, 0]]), mask, None, mx.zeros(1)).lists()
    [[5, 9]]
    """

    tokens: mx.array
    completion_mask: mx.array
    logps: mx.array | None
    truncated: mx.array

    def lists(self) -> list[list[int]]:
        """Return the tokens of each completion, including its stop token; this waits for the device."""
        tokens: Any = self.tokens[:, 1:].tolist()
        drawn: Any = self.completion_mask.tolist()
        rows = zip(tokens, drawn, strict=True)
        return [[token for token, mine in zip(*row, strict=True) if mine] for row in rows]


def check_prompts(caller: str, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the lengths of the prompts; raise an error unless each is a non-empty sequence of tokens."""
    if len(prompts) == 0:
        raise checks.error(caller, "prompts must hold at least one prompt, got none")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise checks.error(caller, f"prompts must have at least one token each, got none in {number}")
        for token in prompt:
            checks.integer(caller, f"prompts[{number}]", token, least=0)
    return [len(prompt) for prompt in prompts]
