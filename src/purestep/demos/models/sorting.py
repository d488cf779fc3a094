"""The task of sorting digits, and a model small enough to learn it on a CPU."""

import random
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from purestep.demos.models.transformer import Block

EQUALS, STOP, VOCABULARY = 10, 11, 12
DIGITS = 4


class Decoder(nn.Module):
    """A pre-norm decoder. Before training its predictions are uniform over the vocabulary.

    Args:
        width: size of the residual stream, a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads per block.
    """

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = [Block(width, heads) for _ in range(layers)]
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = mx.zeros((VOCABULARY, width))

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return logits [batch, seq, vocabulary] for tokens [batch, seq]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def prompts(train: int, test: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return two disjoint lists of prompts such as `7 3 3 1 =`.

    >>> prompts(1, 1, seed=0)
    ([[6, 3, 1, 1, 10]], [[6, 8, 9, 0, 10]])
    """
    numbers = random.Random(seed).sample(range(10**DIGITS), train + test)
    chosen = [[*(int(digit) for digit in f"{number:0{DIGITS}}"), EQUALS] for number in numbers]
    return chosen[:train], chosen[train:]


def answer(prompt: Sequence[int]) -> list[int]:
    """Return the correct completion of a prompt.

    >>> answer([7, 3, 3, 1, EQUALS])
    [1, 3, 3, 7, 11]
    """
    return [*sorted(prompt[:-1]), STOP]


def correctness(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
    """Return the share of correct places of each completion; 1 for exactly the answer.

    >>> correctness([[7, 3, 3, 1, EQUALS]], [[1, 3, 7, 3, STOP]])
    [0.6]
    """
    rewards = []
    for prompt, completion in zip(prompts, completions, strict=True):
        wanted = answer(prompt)
        right = sum(a == b for a, b in zip(wanted, completion, strict=False))
        rewards.append(right / max(len(wanted), len(completion)))
    return rewards
