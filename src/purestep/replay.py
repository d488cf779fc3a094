"""Recording of steps that went wrong, to run and explain them again."""

from functools import partial

from purestep._replay.bundle import Bundle, load
from purestep._replay.explaining import Nonfinite, Report, Stage, explain
from purestep._replay.recording import Recorder, ReplayWarning, record

__all__ = [
    "Bundle",
    "explain",
    "load",
    "Nonfinite",
    "record",
    "Recorder",
    "ReplayWarning",
    "Report",
    "Stage",
]

__dir__ = partial(sorted, __all__)
