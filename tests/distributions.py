"""What a token is to be drawn from, by definition."""

import numpy as np


def probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution by definition, in float64 and one token after another."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    kept = order[:top_k]
    weights = np.exp(scaled - scaled.max())
    if top_p is not None:
        total, mass = sum(weights[token] for token in kept), 0.0
        for number, token in enumerate(kept):
            mass += weights[token] / total
            if mass >= top_p:
                kept = kept[: number + 1]
                break
    chances = np.zeros(len(scaled))
    chances[kept] = weights[kept]
    return chances / chances.sum()
