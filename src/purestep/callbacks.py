"""Callbacks of `fit`: the protocol, and the callbacks that are built in."""

from functools import partial

from purestep._loop.callbacks.best import keep_best
from purestep._loop.callbacks.diverging import divergence
from purestep._loop.callbacks.finiteness import nonfinite
from purestep._loop.callbacks.intervals import every
from purestep._loop.callbacks.lines import jsonl
from purestep._loop.callbacks.output import MetricsWarning
from purestep._loop.callbacks.printing import log
from purestep._loop.callbacks.samples import sampler
from purestep._loop.callbacks.showing import plots, progress
from purestep._loop.callbacks.stopping import early_stopping
from purestep._loop.core.history import History
from purestep._loop.core.progress import Callback, Monitor, Progress, Request, Run, Save, Stop
from purestep._loop.monitors.health import GradientWarning, gradient_health
from purestep._loop.monitors.leaves import Health
from purestep._loop.monitors.memory_use import MemoryWarning, memory
from purestep._loop.monitors.speed import throughput
from purestep._loop.trackers.to_csv import csv
from purestep._loop.trackers.to_mlflow import mlflow
from purestep._loop.trackers.to_swanlab import swanlab
from purestep._loop.trackers.to_tensorboard import tensorboard
from purestep._loop.trackers.to_wandb import wandb
from purestep._loop.trackers.tracker import Opening, Tracker

__all__ = [
    # The protocol
    "Callback",
    "Run",
    "Progress",
    "History",
    "Stop",
    "Save",
    "Request",
    "every",
    # Output
    "progress",
    "log",
    "jsonl",
    "MetricsWarning",
    "sampler",
    "plots",
    # Trackers
    "csv",
    "tensorboard",
    "wandb",
    "mlflow",
    "swanlab",
    "Tracker",
    "Opening",
    # Monitors
    "throughput",
    "memory",
    "MemoryWarning",
    "gradient_health",
    "GradientWarning",
    "Health",
    "Monitor",
    # Reasons to stop or to save
    "early_stopping",
    "divergence",
    "nonfinite",
    "keep_best",
]

__dir__ = partial(sorted, __all__)
