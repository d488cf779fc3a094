"""Batches as functions of the step, or of the state."""

from purestep.data.completions import Completions as Completions
from purestep.data.rollout import rollout as rollout
from purestep.data.sampling import sampler as sampler
from purestep.data.source import Source as Source
from purestep.data.text import Characters as Characters
from purestep.data.text import RandomWindows as RandomWindows
from purestep.data.text import consecutive_windows as consecutive_windows
from purestep.data.truncation import truncated_logits as truncated_logits
