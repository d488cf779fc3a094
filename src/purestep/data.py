"""Sources of batches, and sampling from a model.

A source is a pure function of the step number (`at(step)`) or of the training state (`rollout`), so a resumed
run sees the same batches as an uninterrupted one.
"""

from functools import partial

from purestep._data.core.source import Source
from purestep._data.sampling.completions import Completions
from purestep._data.sampling.rollout import rollout
from purestep._data.sampling.sampler import sampler
from purestep._data.sampling.truncation import truncated_logits
from purestep._data.text.examples import Example, Examples
from purestep._data.text.files import TokenFile
from purestep._data.text.packing import Packed, pack
from purestep._data.text.tokenizing import tokenize_file
from purestep._data.text.windows import Characters, RandomWindows, consecutive_windows

__all__ = [
    # Sources
    "Source",
    "Characters",
    "consecutive_windows",
    "RandomWindows",
    # Text, tokens and records
    "TokenFile",
    "tokenize_file",
    "Example",
    "Examples",
    "pack",
    "Packed",
    # Sampling from a model
    "Completions",
    "rollout",
    "sampler",
    "truncated_logits",
]

__dir__ = partial(sorted, __all__)
