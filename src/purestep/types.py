"""Types for annotations: the data in a step, and the functions that users write."""

from functools import partial

from purestep._core.types import (
    Apply,
    Batch,
    Encoder,
    EvalStepFn,
    Init,
    Loss,
    LossFn,
    LossOutput,
    Metrics,
    Params,
    PlainLossFn,
    ScalarOrSchedule,
    Schedule,
    StatefulLossFn,
    StepFn,
    Tree,
    Update,
    Updates,
)

__all__ = [
    # Data
    "Tree",
    "Params",
    "Updates",
    "Batch",
    "Metrics",
    # Loss functions
    "Loss",
    "LossFn",
    "PlainLossFn",
    "StatefulLossFn",
    "LossOutput",
    "Encoder",
    # Modules
    "Apply",
    # Transforms and schedules
    "Init",
    "Update",
    "Schedule",
    "ScalarOrSchedule",
    # Steps
    "StepFn",
    "EvalStepFn",
]

__dir__ = partial(sorted, __all__)
