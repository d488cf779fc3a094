"""Sources of batches, and sampling from a model.

A source is a pure function of the step number (`at(step)`) or of the training state (`rollout`), so a resumed
run sees the same batches as an uninterrupted one.
"""

from functools import partial

from purestep._core.types import OnPolicySource, Source
from purestep._data.arrays.batches import Batches
from purestep._data.arrays.buckets import LengthBuckets
from purestep._data.arrays.mapping import map
from purestep._data.arrays.stacking import stacked
from purestep._data.curricula.difficulty import difficulty_curriculum
from purestep._data.curricula.mixing import Mixture
from purestep._data.curricula.stages import Stages, length_curriculum
from purestep._data.ranks.sharding import for_rank
from purestep._data.sampling.completions import Completions
from purestep._data.sampling.rollout import rollout
from purestep._data.sampling.sampler import sampler
from purestep._data.sampling.truncation import truncated_logits
from purestep._data.streams.stream import Stream
from purestep._data.text.completions import tokenize_records
from purestep._data.text.examples import Example, Examples
from purestep._data.text.files import TokenFile
from purestep._data.text.packing import Packed, pack
from purestep._data.text.pairs import Pairs, tokenize_pairs
from purestep._data.text.records import jsonl
from purestep._data.text.token_windows import TokenWindows
from purestep._data.text.tokenizers import Tokenizer
from purestep._data.text.tokenizing import tokenize_file
from purestep._data.text.windows import Characters, RandomWindows, consecutive_windows

__all__ = [
    # Sources
    "Source",
    "OnPolicySource",
    "Batches",
    "LengthBuckets",
    "map",
    "stacked",
    "Stream",
    # Sources made of sources
    "Mixture",
    "Stages",
    # Several processes
    "for_rank",
    # Curricula
    "length_curriculum",
    "difficulty_curriculum",
    # Windows of a text
    "Characters",
    "consecutive_windows",
    "RandomWindows",
    # Text, tokens and records
    "TokenFile",
    "TokenWindows",
    "Tokenizer",
    "tokenize_file",
    "jsonl",
    "tokenize_records",
    "tokenize_pairs",
    "Pairs",
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
