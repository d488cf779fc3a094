"""Callbacks of `fit`: what they receive, what they may return, and those that are shipped."""

from functools import partial

from purestep._loop.core.history import History
from purestep._loop.core.progress import Callback, Progress, Request, Run, Save, Stop

__all__ = [
    # The protocol
    "Callback",
    "Run",
    "Progress",
    "History",
    "Stop",
    "Save",
    "Request",
]

__dir__ = partial(sorted, __all__)
