"""Training as a pure function on MLX: `step(state, batch) -> (state, metrics)`."""

from functools import partial

from purestep import (
    adapters,
    callbacks,
    checkpoint,
    data,
    hardware,
    layers,
    losses,
    memory,
    metrics,
    optimizers,
    parallel,
    populations,
    replay,
    rng,
    schedules,
    transforms,
    tree,
    types,
)
from purestep._core.mean import Mean, MeanSum
from purestep._core.packing import Packed, unpacked
from purestep._export.exporting import export
from purestep._export.importing import import_step
from purestep._loop.config.building import (
    create_mup_optimizer,
    create_optimizer,
    create_schedule,
    create_step,
)
from purestep._loop.config.config import TrainConfig
from purestep._loop.fitting.evaluation import Evaluation
from purestep._loop.fitting.fit import fit
from purestep._loop.fitting.result import Best, FitResult
from purestep._loop.fitting.storage import CheckpointWarning
from purestep._loop.profiling.profiler import Profile, profile
from purestep._loop.running.run import SourceEndedWarning, run
from purestep._modules.bridge import functional
from purestep._modules.writing import write_back
from purestep._parallel.data_parallel import data_parallel
from purestep._parallel.sharded import sharded
from purestep._population.population import population
from purestep._steps.cached_contrastive import cached_contrastive_step
from purestep._steps.compile import Compiled, NotCompiledWarning, compiled
from purestep._steps.evaluate import eval_step, evaluate
from purestep._steps.loss_scaled import loss_scaled_step
from purestep._steps.precision import compute_in
from purestep._steps.sam import sam_step
from purestep._steps.scan import scan
from purestep._steps.state import TrainState
from purestep._steps.step import Parts, Step
from purestep._steps.train import train_step
from purestep._steps.unrolling import unrolled
from purestep._transforms.core.base import GradientTransform, apply_updates, identity
from purestep._transforms.core.combining import chain
from purestep._transforms.core.packed import packed
from purestep._transforms.inspection.evaluation import eval_params
from purestep._transforms.wrappers.hyperparameters import hyperparameters, set_hyperparameters

__version__ = "0.2.0"

__all__ = [
    # From a module to a function
    "functional",
    "write_back",
    # The state and the step
    "TrainState",
    "train_step",
    "Step",
    "Parts",
    "compiled",
    "Compiled",
    "compute_in",
    "loss_scaled_step",
    "sam_step",
    "cached_contrastive_step",
    "data_parallel",
    "sharded",
    "scan",
    "population",
    "unrolled",
    "NotCompiledWarning",
    # A step as a file
    "export",
    "import_step",
    # The loop
    "run",
    "fit",
    "FitResult",
    "Best",
    "Evaluation",
    "profile",
    "Profile",
    "CheckpointWarning",
    "SourceEndedWarning",
    # A configuration, and what is built from it
    "TrainConfig",
    "create_schedule",
    "create_optimizer",
    "create_mup_optimizer",
    "create_step",
    # Evaluation
    "eval_step",
    "evaluate",
    "eval_params",
    "Mean",
    "MeanSum",
    # Gradient transforms
    "GradientTransform",
    "chain",
    "identity",
    "apply_updates",
    # Parameters as few vectors
    "packed",
    "unpacked",
    "Packed",
    "hyperparameters",
    "set_hyperparameters",
    # Namespaces
    "adapters",
    "callbacks",
    "checkpoint",
    "data",
    "hardware",
    "layers",
    "memory",
    "losses",
    "metrics",
    "optimizers",
    "parallel",
    "populations",
    "replay",
    "rng",
    "schedules",
    "transforms",
    "tree",
    "types",
]

__dir__ = partial(sorted, __all__)
