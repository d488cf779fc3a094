"""Shuffled windows into tokens."""

import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from purestep.data import TokenFile, TokenWindows, consecutive_windows

TOKENS = np.arange(1000, dtype=np.uint16)


def epoch_of(source, epoch=0):
    """Return the batches of an epoch as lists of windows."""
    steps = range(epoch * len(source), (epoch + 1) * len(source))
    return [np.array(source.at(step)["inputs"]).tolist() for step in steps]


@pytest.mark.parametrize("kind", ["file", "mlx", "numpy", "memmap"])
def test_tokens_of_every_kind_give_the_same_batches(tmp_path, kind):
    file = TokenFile.write(tmp_path / "tokens.bin", [TOKENS.tolist()], dtype="uint16")
    tokens = {
        "file": file,
        "mlx": mx.array(TOKENS),
        "numpy": TOKENS.astype(np.int64),
        "memmap": np.memmap(tmp_path / "tokens.bin", np.uint16, "r"),
    }[kind]
    source, wanted = (TokenWindows(each, 4, 16, seed=5) for each in (tokens, mx.arange(1000)))
    for step in (0, 3, len(source), 99):
        batch = source.at(step)
        assert mx.array_equal(batch["inputs"], wanted.at(step)["inputs"])
        assert mx.array_equal(batch["targets"], batch["inputs"] + 1)
        assert {(array.dtype, array.shape) for array in batch.values()} == {(mx.int32, (4, 16))}


@pytest.mark.parametrize(
    ("count", "context"), [(1000, 16), (1000, 1), (129, 16), (33, 16), (17, 16), (34, 32)]
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_token_is_a_target_at_most_once_an_epoch(count, context, shuffle):
    source = TokenWindows(mx.arange(count), 1, context, seed=1, shuffle=shuffle)
    for epoch in range(3):
        steps = range(epoch * len(source), (epoch + 1) * len(source))
        targets = [t for step in steps for t in np.array(source.at(step)["targets"]).flatten().tolist()]
        assert len(set(targets)) == len(targets) == len(source) * context
        assert count - 1 - len(targets) < (2 if shuffle else 1) * context
        assert set(targets) <= set(range(1, count))


def test_epochs_have_other_orders_and_other_offsets():
    source = TokenWindows(mx.arange(1000), 4, 16, seed=3)
    first, second = epoch_of(source), epoch_of(source, 1)
    offsets = {epoch_of(source, epoch)[0][0][0] % 16 for epoch in range(20)}
    assert len(offsets) > 5
    assert first != second
    assert [sorted(batch) for batch in first] != first
    again = TokenWindows(mx.arange(1000), 4, 16, seed=3)
    assert np.array(again.at(len(source))["inputs"]).tolist() == second[0]
    assert epoch_of(TokenWindows(mx.arange(1000), 4, 16, seed=4)) != first
    plain = TokenWindows(mx.arange(1000), 4, 16, shuffle=False)
    assert epoch_of(plain) == epoch_of(plain, 1)
    assert [batch[0][0] for batch in epoch_of(plain)[:3]] == [0, 64, 128]


def test_ranks_share_the_batch_of_one_process():
    whole = TokenWindows(mx.arange(1000), 6, 16, seed=3)
    parts = [TokenWindows(mx.arange(1000), 6, 16, seed=3, rank=rank, world=3) for rank in range(3)]
    assert {len(part) for part in parts} == {len(whole)}
    for step in (0, 7, 30):
        rows = mx.concatenate([part.at(step)["inputs"] for part in parts])
        assert mx.array_equal(rows, whole.at(step)["inputs"])


def test_a_token_out_of_the_vocabulary_is_refused_with_its_position(tmp_path):
    tokens = [1] * 100
    tokens[70], tokens[71] = 9, 8
    file = TokenFile.write(tmp_path / "tokens.bin", [tokens], dtype="uint16")
    source = TokenWindows(file, 3, 33, shuffle=False, vocabulary=8)
    with pytest.raises(
        ValueError,
        match=r"^TokenWindows: .*tokens.bin .*vocabulary=8\), got 9 at position 70$",
    ):
        source.at(0)
    TokenWindows(file, 3, 33, shuffle=False, vocabulary=10).at(0)
    for token in (2**31, -1):
        wide = TokenFile.write(tmp_path / "wide.bin", [[0] * 60, [token] * 60], dtype="int64")
        with pytest.raises(ValueError, match=rf"\(int32\), got {token} at position 60$"):
            TokenWindows(wide, 1, 100, shuffle=False).at(0)


def test_batches_are_read_in_another_thread():
    source, found = TokenWindows(mx.arange(1000) + 0, 4, 16), []

    def work():
        batch = source.at(3)
        mx.eval(batch)
        found.append(batch)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert mx.array_equal(found[0]["inputs"], source.at(3)["inputs"])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_reading_a_file_does_not_make_it_resident(tmp_path):
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(64 * 2**20)
    source = TokenWindows(TokenFile(tmp_path / "tokens.bin", "uint16"), 64, 4096, vocabulary=100)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    mx.eval(source.at(0))
    before = resident()
    for step in range(len(source)):
        mx.eval(source.at(step))
    assert resident() - before < 16 * 2**20  # the file has 64


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (
            mx.arange(64),
            {"context": 64},
            "batch_size=2 .*context=64 .*got 0 .*64",
        ),
        (
            mx.arange(100),
            {"batch_size": 8},
            "batch_size=8 .*context=16 .*got 5 .*100",
        ),
        (
            mx.zeros(100),
            {},
            r"tokens .* contiguous array \[length\] of .*, got mlx.core.float32 \(100,\)",
        ),
        (
            mx.zeros((10, 10), mx.int32),
            {},
            r"tokens .*contiguous .* got mlx.core.int32 \(10, 10\)",
        ),
        (TOKENS[::2], {}, r"tokens .*contiguous .* got uint16 \(500,\)"),
        ([1, 2, 3], {}, "tokens .*contiguous .* got list"),
        (TOKENS, {"world": 4}, "batch_size .*world=4, got 2"),
        (TOKENS, {"rank": 2, "world": 2}, "rank .*world=2, got 2"),
        (TOKENS, {"seed": -1}, "seed .* 0, got -1"),
        (TOKENS, {"vocabulary": 0}, "vocabulary .* 1, got 0"),
        (TOKENS, {"vocabulary": 2**31 + 1}, r"vocabulary .* 2\*\*31, got 2147483649"),
    ],
)
def test_bad_arguments_are_refused(tokens, options, message):
    with pytest.raises(ValueError, match=f"^TokenWindows: .*{message}"):
        TokenWindows(tokens, **{"batch_size": 2, "context": 16, **options})


@pytest.mark.parametrize("stop", [102, 116, 117, 200])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_filled_windows_have_each_token_but_the_first_as_a_target_once(tmp_path, stop, kind):
    tokens = [(7 * n) % 31 for n in range(200)]
    file = TokenFile.write(tmp_path / "tokens.bin", [tokens], dtype="uint16")
    part = file[100:stop] if kind == "file" else mx.array(tokens[100:stop])
    source = TokenWindows(part, 2, 8, shuffle=False, ignore_index=-100)
    batches = [source.at(step) for step in range(len(source))]
    wanted = consecutive_windows(mx.array(tokens[100:stop]), 2, 8, ignore_index=-100)
    assert len(batches) == len(wanted)
    for ours, other in zip(batches, wanted, strict=True):
        np.testing.assert_array_equal(ours["targets"], other["targets"])
        np.testing.assert_array_equal(ours["inputs"], other["inputs"])
    targets = np.concatenate([np.array(batch["targets"]).ravel() for batch in batches])
    assert targets[targets != -100].tolist() == tokens[101:stop]
    ranks = [TokenWindows(part, 2, 8, shuffle=False, ignore_index=-100, rank=r, world=2) for r in (0, 1)]
    rows = mx.concatenate([each.at(len(source) - 1)["targets"] for each in ranks])
    np.testing.assert_array_equal(rows, batches[-1]["targets"])


def test_an_ignore_index_that_may_be_a_token_or_needs_an_order_is_refused():
    for options, message in (
        ({"shuffle": False, "ignore_index": 0}, "ignore_index .*negative, got 0"),
        ({"ignore_index": -1}, "ignore_index .*shuffle=False"),
    ):
        with pytest.raises(ValueError, match=f"^TokenWindows: {message}"):
            TokenWindows(mx.arange(100), 2, 8, **options)
    with pytest.raises(ValueError, match=r"^TokenWindows: tokens .* 2 tokens, got 1"):
        TokenWindows(mx.arange(1), 2, 8, shuffle=False, ignore_index=-1)
