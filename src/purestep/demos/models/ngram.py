"""A character n-gram model: what a network has to beat before it has learned anything worth a network."""

import math
from collections import Counter


def ngram_loss(train: str, validation: str, order: int = 3) -> float:
    """Fit an interpolated n-gram model and return its mean loss on the validation text, in nats a character.

    Each order is mixed with the one below by the number of different characters seen after a context
    (Witten and Bell, 1991), down to the uniform distribution over all characters: nothing is tuned.

    Args:
        train: the text to count.
        validation: the text to predict, each character after its first, from the `order - 1` before it.
        order: 3 for a trigram.

    >>> round(ngram_loss("abababab", "abab"), 2)
    0.05
    """
    seen = [Counter[str]() for _ in range(order)]
    for length in range(order):
        for end in range(length, len(train)):
            seen[length][train[end - length : end + 1]] += 1
    total = [Counter[str]() for _ in range(order)]
    kinds = [Counter[str]() for _ in range(order)]
    for length in range(order):
        for gram, count in seen[length].items():
            total[length][gram[:-1]] += count
            kinds[length][gram[:-1]] += 1
    characters = len(set(train) | set(validation))
    loss = 0.0
    for end in range(1, len(validation)):
        probability = 1 / characters
        for length in range(min(order, end + 1)):
            context = validation[end - length : end]
            distinct, uses = kinds[length][context], total[length][context]
            if uses:
                counted = seen[length][context + validation[end]]
                probability = (counted + distinct * probability) / (uses + distinct)
        loss -= math.log(probability)
    return loss / (len(validation) - 1)
