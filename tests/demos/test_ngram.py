"""The n-gram baseline."""

import math

import pytest

from purestep.demos.models.ngram import ngram_loss


def test_one_character_of_context_worked_by_hand():
    # Train "aab": 2 of 3 unigrams are a, two kinds; after a: a once, b once, two kinds.
    unigram = {"a": (2 + 2 * 0.5) / 5, "b": (1 + 2 * 0.5) / 5}
    after_a = {c: (1 + 2 * unigram[c]) / 4 for c in "ab"}
    expected = -(math.log(after_a["b"]) + math.log(unigram["a"])) / 2  # b was never followed by anything
    assert ngram_loss("aab", "aba", order=2) == pytest.approx(expected)


def test_the_predictions_of_a_context_sum_to_one():
    total = sum(math.exp(-2 * ngram_loss("abcabcaab", "a" + c * 2, order=1)) ** 0.5 for c in "abc")
    assert total == pytest.approx(1.0)


def test_longer_contexts_help_on_regular_text():
    text = "abcabd" * 50
    losses = [ngram_loss(text, text, order) for order in (1, 2, 3, 4)]
    assert losses == sorted(losses, reverse=True)
