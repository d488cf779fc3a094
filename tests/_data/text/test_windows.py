"""Text sources."""

import math

import mlx.core as mx
import numpy as np
import pytest

from purestep import Mean
from purestep.data import Characters, RandomWindows, consecutive_windows
from purestep.losses import cross_entropy

TOKENS = mx.arange(500)


def test_a_batch_is_a_function_of_the_seed_and_the_step():
    source = RandomWindows(TOKENS, batch_size=4, context=8, seed=2)
    batches = [source.at(step)["inputs"].tolist() for step in range(5)]
    again = RandomWindows(TOKENS, batch_size=4, context=8, seed=2)
    assert [again.at(step)["inputs"].tolist() for step in (4, 0, 2)] == [batches[4], batches[0], batches[2]]
    assert len({str(batch) for batch in batches}) == 5
    assert RandomWindows(TOKENS, batch_size=4, context=8, seed=3).at(0)["inputs"].tolist() != batches[0]


def test_targets_come_one_token_later_and_windows_reach_both_ends():
    source = RandomWindows(mx.arange(6), batch_size=64, context=4)
    batch = source.at(0)
    assert batch["inputs"].shape == batch["targets"].shape == (64, 4)
    assert mx.array_equal(batch["targets"], batch["inputs"] + 1)
    assert set(batch["inputs"][:, 0].tolist()) == {0, 1}
    assert batch["targets"].max().item() == 5


@pytest.mark.parametrize("length", [2, 3, 12, 13, 14, 100])
def test_consecutive_windows_make_every_token_but_the_first_a_target_once(length):
    batches = consecutive_windows(mx.arange(length), batch_size=3, context=4, ignore_index=-100)
    targets = [t for batch in batches for t in batch["targets"].flatten().tolist()]
    assert [t for t in targets if t != -100] == list(range(1, length))
    assert {batch["inputs"].shape for batch in batches} == {(3, 4)}
    pairs = [
        (x, y)
        for batch in batches
        for x, y in zip(batch["inputs"].flatten().tolist(), batch["targets"].flatten().tolist(), strict=True)
    ]
    assert all(y == x + 1 for x, y in pairs if y != -100)


@pytest.mark.parametrize("length", [2, 3, 5, 12, 13, 14, 24, 100])
def test_windows_that_fill_nothing_need_nothing_ignored(length):
    batches = consecutive_windows(mx.arange(length), batch_size=3, context=4)
    assert [t for batch in batches for t in batch["targets"].flatten().tolist()] == list(range(1, length))
    assert all(mx.array_equal(batch["targets"], batch["inputs"] + 1).item() for batch in batches)
    assert all(batch["inputs"].shape[0] <= 3 and batch["inputs"].shape[1] <= 4 for batch in batches)
    assert len({batch["inputs"].shape for batch in batches}) <= 3
    losses = [cross_entropy(mx.zeros((*b["targets"].shape, length)), b["targets"]) for b in batches]
    mean = Mean.merge(*losses)
    assert mean.weight.item() == length - 1
    assert mean.value.item() == pytest.approx(math.log(length), rel=1e-6)


def test_characters_round_trip_and_refuse_what_they_lack():
    characters = Characters.of("hello, wörld")
    assert characters.symbols == " ,dehlorwö"
    assert characters.decode(characters.encode("hör")) == "hör"
    with pytest.raises(ValueError, match="Characters.encode: text .* got 'xz'"):
        characters.encode("xyz".replace("y", "h"))
    with pytest.raises(ValueError, match="Characters.of: text .*empty"):
        Characters.of("")
    for token in (-1, 10):  # Python's -1 would be the last character
        with pytest.raises(ValueError, match=rf"Characters.decode: tokens .*\[0, 10\), got {token}"):
            characters.decode(mx.array([1, token]))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"RandomWindows: tokens .*context=8, got \(8,\)"):
        RandomWindows(mx.arange(8), batch_size=1, context=8)
    with pytest.raises(ValueError, match="RandomWindows: batch_size .* 1, got 0"):
        RandomWindows(TOKENS, batch_size=0, context=8)
    with pytest.raises(ValueError, match=r"consecutive_windows: tokens .* 2, got \(1,\)"):
        consecutive_windows(mx.arange(1), 1, 1)
    with pytest.raises(ValueError, match="RandomWindows.at: step .* 0, got -1"):
        RandomWindows(TOKENS, batch_size=1, context=8).at(-1)
    for wrong, message in ((mx.zeros(20), "float32"), ([1] * 20, "got list")):
        for make in (RandomWindows, consecutive_windows):
            with pytest.raises(TypeError, match=f"^{make.__name__}: tokens .*{message}"):
                make(wrong, 2, 4)
    for token in (-1, 2**31):
        with pytest.raises(ValueError, match=rf"RandomWindows: tokens .*, got {token}"):
            RandomWindows(mx.array([token] * 20, mx.int64), 2, 4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "uint32"])
def test_windows_are_int32_whatever_the_dtype_and_the_library(dtype):
    wanted = RandomWindows(mx.arange(100), batch_size=2, context=8).at(5)
    for tokens in (np.arange(100, dtype=dtype), mx.array(np.arange(100, dtype=dtype))):
        batch = RandomWindows(tokens, batch_size=2, context=8).at(5)
        assert {array.dtype for array in batch.values()} == {mx.int32}
        assert all(mx.array_equal(batch[name], wanted[name]).item() for name in wanted)
    first = consecutive_windows(np.arange(100, dtype=dtype), 2, 8)[0]
    assert mx.array_equal(first["targets"], consecutive_windows(mx.arange(100), 2, 8)[0]["targets"])


@pytest.mark.parametrize("dtype", [mx.uint8, mx.uint16, mx.int32, mx.uint32, mx.int64])
def test_the_loss_leaves_out_what_consecutive_windows_fills_whatever_the_dtype(dtype):
    """In uint8, -100 would become 156, which is a token of a vocabulary of 256."""
    tokens = mx.array([7, 155, 200, 3, 255, 9], dtype)
    means = [
        cross_entropy(mx.zeros((*batch["targets"].shape, 256)), batch["targets"], ignore_index=-100)
        for batch in consecutive_windows(tokens, batch_size=2, context=2, ignore_index=-100)
    ]
    assert Mean.merge(*means).weight.item() == 5
    assert Mean.merge(*means).value.item() == pytest.approx(math.log(256))
    targets = consecutive_windows(tokens, 2, 2, ignore_index=-100)[1]["targets"]
    unasked = cross_entropy(mx.zeros((2, 2, 256)), targets)
    assert math.isnan(unasked.value.item())


def test_a_token_of_the_text_does_not_mark_the_end():
    with pytest.raises(ValueError, match=r"^consecutive_windows: ignore_index .*not .*token .*got 3$"):
        consecutive_windows(mx.arange(6), 1, 4, ignore_index=3)
