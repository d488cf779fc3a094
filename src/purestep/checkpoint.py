"""Storage of states: files, bytes, and the checkpoints of a run."""

from functools import partial

from purestep._checkpoint.disk.lock import LockedError
from purestep._checkpoint.exporting.weights import save_weights
from purestep._checkpoint.files.msgpack import from_bytes, to_bytes
from purestep._checkpoint.files.safetensors import load, save
from purestep._checkpoint.files.weights import load_weights
from purestep._checkpoint.format.header import CorruptError
from purestep._checkpoint.restoring.hyperparameters import HyperparameterWarning
from purestep._checkpoint.restoring.restore import RestoreWarning
from purestep._checkpoint.run.keeping import KeepPolicy, keep_any, keep_best, keep_every, keep_last
from purestep._checkpoint.run.manager import Checkpointer
from purestep._checkpoint.run.newest import Restored
from purestep._checkpoint.run.record import Moment, Record
from purestep._checkpoint.run.saving import (
    SavePolicy,
    save_any,
    save_every_seconds,
    save_every_steps,
    save_on_best,
    save_on_signal,
)
from purestep._checkpoint.run.signals import signals
from purestep._checkpoint.run.store import CorruptWarning

__all__ = [
    # Files and bytes
    "from_bytes",
    "load",
    "load_weights",
    "save",
    "save_weights",
    "to_bytes",
    # The checkpoints of a run
    "Checkpointer",
    "CorruptWarning",
    "keep_any",
    "keep_best",
    "keep_every",
    "keep_last",
    "KeepPolicy",
    "Moment",
    "Record",
    "Restored",
    "save_any",
    "save_every_seconds",
    "save_every_steps",
    "save_on_best",
    "save_on_signal",
    "SavePolicy",
    "signals",
    # Warnings
    "HyperparameterWarning",
    "RestoreWarning",
    # Errors
    "CorruptError",
    # Errors of writers
    "LockedError",
]

__dir__ = partial(sorted, __all__)
