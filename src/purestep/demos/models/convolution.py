"""A small convolutional network, and the handwritten digits that it reads."""

import zlib
from importlib.resources import files

import mlx.core as mx
import mlx.nn as nn

IMAGES, SIDE, DARKEST = 1797, 8, 16
TEST = 360  # images


class Convolution(nn.Module):
    """Two convolutions with BatchNorm, and a hidden layer with Dropout.

    Args:
        channels: of the first convolution; the second has twice as many.
    """

    def __init__(self, channels: int = 16):
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.first_norm = nn.BatchNorm(channels)
        self.second = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.second_norm = nn.BatchNorm(2 * channels)
        self.hidden = nn.Linear(2 * channels * (SIDE // 2) ** 2, 64)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, 10)

    def __call__(self, images: mx.array) -> mx.array:
        """Return logits [batch, 10] for images [batch, 8, 8, 1]."""
        x = nn.relu(self.first_norm(self.first(images)))
        x = nn.relu(self.second_norm(self.second(x)))
        # The mean of 2 x 2 pixels: a pooling that every device has a gradient for.
        x = x.reshape(x.shape[0], SIDE // 2, 2, SIDE // 2, 2, -1).mean((2, 4))
        x = nn.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.head(self.dropout(x))


def handwritten() -> tuple[mx.array, mx.array]:
    """Return the images, float32 [1797, 8, 8, 1] from 0 to 1, and their digits, int32 [1797].

    >>> images, digits = handwritten()
    >>> images.shape, digits[:5].tolist()
    ((1797, 8, 8, 1), [0, 1, 2, 3, 4])
    """
    content = zlib.decompress((files("purestep.demos") / "data" / "digits.zlib").read_bytes())
    pixels, digits = content[: IMAGES * SIDE * SIDE], content[IMAGES * SIDE * SIDE :]
    images = mx.array(list(pixels), mx.float32).reshape(IMAGES, SIDE, SIDE, 1) / DARKEST
    return images, mx.array(list(digits), mx.int32)
