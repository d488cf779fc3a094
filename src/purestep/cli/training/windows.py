"""Windows into a part of a token file: random ones to learn, consecutive ones to measure."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from purestep._core.rng import fold_in
from purestep._core.types import Batch
from purestep._data.text.files import TokenFile

IGNORED = -100  # a target that does not count


@dataclass(frozen=True)
class RandomTokens:
    """A source of random windows into `file[start:stop]`, as a pure function of seed and step."""

    file: TokenFile
    start: int
    stop: int
    batch_size: int
    context: int
    seed: int

    def at(self, step: int) -> Batch:
        """Return `{"inputs", "targets"}`, int32 [batch, context]; targets are one token later."""
        key = fold_in(mx.random.key(self.seed), step)
        last = self.stop - self.context
        starts: Any = mx.random.randint(self.start, last, (self.batch_size,), key=key).tolist()
        windows = self.file.windows(starts, self.context + 1).astype(mx.int32)
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


@dataclass(frozen=True)
class ConsecutiveTokens:
    """A source of the windows of `file[start:stop]` in order; each token but the first is a target once.

    The last batch is padded with targets of `IGNORED`, so that all batches have one shape.
    """

    file: TokenFile
    start: int
    stop: int
    batch_size: int
    context: int

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-(self.stop - self.start - 1) // (self.batch_size * self.context))

    def at(self, step: int) -> Batch:
        """Return `{"inputs", "targets"}`, int32 [batch, context]."""
        size = self.batch_size * self.context
        begin = self.start + step * size
        tokens = self.file.read(begin, min(begin + size + 1, self.stop)).astype(mx.int32)
        missing = size + 1 - tokens.size
        inputs = mx.pad(tokens[:-1], (0, missing))
        targets = mx.pad(tokens[1:], (0, missing), constant_values=mx.array(IGNORED))
        shape = (self.batch_size, self.context)
        return {"inputs": inputs.reshape(shape), "targets": targets.reshape(shape)}
