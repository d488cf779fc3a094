"""Packed rows: positions and masks against a loop over the row, and attention against separate sequences."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import packed_attention_mask, packed_loss_mask, packed_positions, packed_segments, shift
from tests.refusals import parts

ROWS = [
    [1, 1, 1, 2, 2, 3, 0, 0],
    [4, 4, 2, 2, 2, 2, 2, 2],
    [1, 2, 1, 1, 3, 3, 3, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
]


def walk(row):
    """Yield (sequence number, position within it) of every token; a run of padding is a sequence too."""
    number, place, last = -1, 0, None
    for segment in row:
        number, place = (number + 1, 0) if segment != last else (number, place + 1)
        last = segment
        yield number, place


def test_positions_and_masks_are_those_of_a_walk_through_the_row():
    segments = mx.array(ROWS)
    positions, losses = np.zeros((4, 8)), np.zeros((4, 7))
    attention = np.zeros((4, 1, 8, 8), bool)
    for index, row in enumerate(ROWS):
        numbers, positions[index] = zip(*walk(row), strict=True)
        for query in range(8):
            for key in range(query + 1):
                attention[index, 0, query, key] = numbers[query] == numbers[key]
            if query:
                losses[index, query - 1] = numbers[query] == numbers[query - 1] and row[query] != 0
    np.testing.assert_array_equal(packed_positions(segments), positions)
    np.testing.assert_array_equal(packed_loss_mask(segments), losses)
    np.testing.assert_array_equal(packed_attention_mask(segments), attention)
    assert packed_attention_mask(segments).dtype == mx.bool_
    np.testing.assert_array_equal(mx.vmap(packed_positions)(segments), positions)
    np.testing.assert_array_equal(mx.vmap(packed_attention_mask)(segments), attention)


def test_a_packed_sequence_attends_as_it_does_alone():
    key = mx.random.key(0)
    x = mx.random.normal((1, 1, 5, 4), key=key)
    inputs, _ = shift(mx.array([[1, 1, 1, 2, 2, 2]]))
    attend = mx.fast.scaled_dot_product_attention
    packed = attend(x, x, x, scale=0.5, mask=packed_attention_mask(inputs))
    for cut in (slice(0, 3), slice(3, 5)):
        part = x[:, :, cut]
        np.testing.assert_allclose(
            packed[:, :, cut], attend(part, part, part, scale=0.5, mask="causal"), 1e-5, 1e-6
        )


def test_padding_attends_to_something_so_nothing_is_nan():
    x = mx.ones((1, 1, 3, 2))
    mask = packed_attention_mask(mx.zeros((1, 3), mx.int32))
    assert mx.isfinite(mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0, mask=mask)).all().item()


@pytest.mark.parametrize(
    ("tokens", "padding", "segments"),
    [
        ([5, 9, 6, 7, 9, 0], 0, [1, 1, 2, 2, 2, 0]),
        ([5, 9, 6, 7, 8, 4], None, [1, 1, 2, 2, 2, 2]),
        ([5, 6, 9, 9, 9, 9], 9, [1, 1, 1, 0, 0, 0]),
        ([5, 9, 9, 6, 9, 9], None, [1, 1, 2, 3, 3, 4]),
    ],
)
def test_separators_number_the_sequences(tokens, padding, segments):
    assert packed_segments(mx.array([tokens]), 9, padding=padding).tolist() == [segments]


@pytest.mark.parametrize("function", [packed_positions, packed_loss_mask, packed_attention_mask])
def test_segments_that_are_not_integers_or_not_there_are_refused(function):
    with pytest.raises(TypeError, match=f"^{function.__name__}: segments .* integers, got mlx.core.float32"):
        function(mx.zeros((2, 3)))
    with pytest.raises(ValueError, match=parts("segments ... [batch, length] ... 1, got (2, 0)")):
        function(mx.zeros((2, 0), mx.int32))


def test_a_separator_that_is_no_token_is_refused():
    with pytest.raises(ValueError, match="packed_segments: separator .* 0, got -1"):
        packed_segments(mx.zeros((1, 3), mx.int32), -1)
