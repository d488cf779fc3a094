"""Pictures: PNG files that an independent reader reads back."""

import io

import mlx.core as mx
import numpy as np
import pytest

from purestep._loop.trackers.images import picture_of
from tests.refusals import parts

RNG = np.random.default_rng(0)


def decoded(png):
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(png))
    image.load()
    return np.asarray(image)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (2, 7, 2), (4, 4, 3), (1, 1, 4), (33, 2, 3)])
@pytest.mark.parametrize("library", [mx.array, np.asarray])
def test_arrays_are_read_back_exactly(shape, library):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    picture = picture_of("test", library(pixels))
    assert (picture.height, picture.width) == shape[:2]
    np.testing.assert_array_equal(decoded(picture.png).reshape(shape), pixels)


def test_floats_are_rounded_and_strides_do_not_matter():
    values = RNG.random((4, 6)).astype(np.float32)
    picture = picture_of("test", mx.array(values).T)
    np.testing.assert_array_equal(decoded(picture.png), np.rint(values.T * 255).astype(np.uint8))


def test_files_and_bytes_stay_as_they_are(tmp_path):
    png = picture_of("test", mx.zeros((2, 3))).png
    path = tmp_path / "a.png"
    path.write_bytes(png)
    assert picture_of("test", path) == picture_of("test", png) == (png, 3, 2)


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (b"GIF89a", ValueError, "test: image ... PNG file, got 6 bytes"),
        (3, TypeError, "test: image ... array, got 3"),
        (mx.zeros(3), ValueError, "test: image ... channels, got (3,)"),
        (mx.zeros((2, 2, 5)), ValueError, "test: image ... got (2, 2, 5)"),
        (mx.zeros((0, 2)), ValueError, "test: image ... got (0, 2)"),
        (mx.full((2, 2), 1.5), ValueError, "test: image ... [0, 1]"),
        (mx.full((2, 2), mx.nan), ValueError, "test: image ... [0, 1]"),
        (mx.zeros((2, 2), mx.int32), ValueError, "test: image ... uint8 ... mlx.core.int32"),
    ],
)
def test_other_values_are_refused(image, error, said):
    with pytest.raises(error, match=parts(said.replace("channels, got", "channels ... got"))):
        picture_of("test", image)
