"""Windows into a token file: those that `purestep.data` makes of tokens in memory."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._data.text.files import TokenFile
from purestep.cli.training.windows import IGNORED, ConsecutiveTokens, RandomTokens

TOKENS = [(7 * n) % 31 for n in range(200)]


@pytest.fixture
def file(tmp_path):
    """Return a file of 200 tokens."""
    return TokenFile.write(tmp_path / "tokens.bin", [TOKENS], dtype="uint16")


def test_random_windows_are_those_of_the_tokens_in_memory(file):
    ours = RandomTokens(file, 0, 150, batch_size=3, context=8, seed=5)
    theirs = ps.data.RandomWindows(mx.array(TOKENS[:150]), batch_size=3, context=8, seed=5)
    for step in (0, 1, 1000):
        for name in ("inputs", "targets"):
            np.testing.assert_array_equal(ours.at(step)[name], theirs.at(step)[name])
            assert ours.at(step)[name].dtype == mx.int32
    late = RandomTokens(file, 150, 159, batch_size=3, context=8, seed=5)  # there is one window
    np.testing.assert_array_equal(late.at(3)["targets"], [TOKENS[151:159]] * 3)


@pytest.mark.parametrize("stop", [102, 116, 117, 200])
def test_consecutive_windows_have_each_token_but_the_first_as_a_target_once(file, stop):
    source = ConsecutiveTokens(file, 100, stop, batch_size=2, context=8)
    batches = [source.at(step) for step in range(len(source))]
    theirs = ps.data.consecutive_windows(mx.array(TOKENS[100:stop]), 2, 8, ignore_index=IGNORED)
    assert len(batches) == len(theirs)
    for ours, other in zip(batches, theirs, strict=True):
        np.testing.assert_array_equal(ours["targets"], other["targets"])
        np.testing.assert_array_equal(ours["inputs"], other["inputs"])
    targets = np.concatenate([np.array(batch["targets"]).ravel() for batch in batches])
    assert targets[targets != IGNORED].tolist() == TOKENS[101:stop]
