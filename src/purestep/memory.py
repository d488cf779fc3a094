"""The memory of training: predicted before anything is allocated, and limited."""

from functools import partial

from purestep._memory.limits import limits
from purestep._memory.predicting import predict
from purestep._memory.reporting import MemoryReport

__all__ = [
    "predict",
    "MemoryReport",
    "limits",
]

__dir__ = partial(sorted, __all__)
