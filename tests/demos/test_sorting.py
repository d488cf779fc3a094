"""The sorting task: prompts, answers, and rewards for partly correct completions."""

import mlx.core as mx
import pytest

from purestep import functional
from purestep.demos.models.sorting import DIGITS, EQUALS, STOP, Decoder, answer, correctness, prompts
from purestep.rng import scope


def test_no_prompt_is_in_both_sets_and_the_seed_decides_them():
    train, test = prompts(300, 50, seed=1)
    assert (len(train), len(test)) == (300, 50)
    assert len({tuple(prompt) for prompt in train + test}) == 350
    assert all(len(p) == DIGITS + 1 and p[-1] == EQUALS and max(p[:-1]) < 10 for p in train + test)
    assert prompts(300, 50, seed=1) == (train, test)
    assert prompts(300, 50, seed=2) != (train, test)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ([1, 3, 3, 7, STOP], 1.0),
        ([1, 3, 3, 7, 7], 0.8),
        ([1, 3, 3], 0.6),
        ([7, 3, 3, 1, STOP], 0.6),
        ([1, 3, 3, 7, STOP, 1, 1, 1, 1, 1], 0.5),
        ([STOP], 0.0),
    ],
)
def test_a_reward_is_the_share_of_places_that_are_right(completion, reward):
    assert answer([7, 3, 3, 1, EQUALS]) == [1, 3, 3, 7, STOP]
    assert correctness([[7, 3, 3, 1, EQUALS]], [completion]) == [reward]


def test_the_model_is_causal_and_begins_uniform():
    with scope(mx.random.key(0)):
        apply, params, _ = functional(Decoder(width=12, layers=2, heads=2))
        params["head"]["weight"] = mx.random.normal(params["head"]["weight"].shape)
        for block in params["blocks"]:
            block["out"]["weight"] = mx.random.normal((12, 12))
    first, second = mx.array([[1, 2, 3, 4]]), mx.array([[1, 2, 9, 9]])
    difference = mx.abs(apply(params, first) - apply(params, second)).max(axis=-1)[0].tolist()
    assert difference[:2] == [0, 0]
    assert difference[2] > 0
    with scope(mx.random.key(0)):
        apply, params, _ = functional(Decoder())
    assert mx.abs(apply(params, first)).max().item() == 0
