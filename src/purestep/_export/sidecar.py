"""The description beside an exported step: what its inputs and outputs are."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.mean import Mean, MeanSum
from purestep._core.types import Tree

_FORMAT = "purestep step"
_VERSION = 1
_LACKS = "export the step again"


class Sidecar(NamedTuple):
    """What an exported step receives and returns.

    Attributes:
        state: the spec of the state.
        batch: the spec of the batch.
        metrics: the parts of each metric: `"array"`, or the number of terms of a mean.
        evaluation: whether the step returns metrics alone.
        steps: the number of training steps that a call makes.
    """

    state: tree.Spec
    batch: tree.Spec
    metrics: dict[str, Any]
    evaluation: bool
    steps: int

    def inputs(self) -> list[tuple[str, tree.ArraySpec]]:
        """Return the name and form of each input, in the order of the file."""
        return sorted(
            (tree.join(name, path), form)
            for name, spec in (("state", self.state), ("batch", self.batch))
            for path, form in tree.spec_items(spec)
        )

    def outputs(self) -> list[tuple[str, Any]]:
        ...
