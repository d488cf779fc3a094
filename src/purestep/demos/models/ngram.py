"""A character n-gram model, the baseline for a network."""

import math
from collections import Counter


def ngram_loss(train: str, validation: str, order: int = 3) -> float:
    """Fit an interpolated n-gram model and return its mean validation loss, in nats per character.

    Each order is interpolated with the next lower one by the number of different characters that follow a
    context (Witten and Bell, 1991), down to the uniform distribution over all characters. There are no
    hyperparameters.

    Args:
        train: the text to count.
        validation: the text to predict, from its second character on.
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
