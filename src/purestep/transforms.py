"""Gradient transforms: pure functions from gradients to updates, combined with `ps.chain`.

The sections of `__all__` are the table of contents. The classes `...State` are the transforms' states.
"""

from functools import partial

from purestep._transforms.algorithms.adagrad.adadelta import ScaleByAdaDeltaState, scale_by_adadelta
from purestep._transforms.algorithms.adagrad.adafactor import FactoredState, scale_by_factored_rms
from purestep._transforms.algorithms.adagrad.adagrad import ScaleByRssState, scale_by_rss
from purestep._transforms.algorithms.adagrad.rmsprop import (
    ScaleByRmsState,
    ScaleByRStdDevState,
    scale_by_rms,
    scale_by_stddev,
)
from purestep._transforms.algorithms.adagrad.sm3 import ScaleBySM3State, scale_by_sm3
from purestep._transforms.algorithms.adam.adabelief import ScaleByBeliefState, scale_by_belief
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState, scale_by_adam
from purestep._transforms.algorithms.adam.adamax import scale_by_adamax
from purestep._transforms.algorithms.adam.adan import ScaleByAdanState, scale_by_adan
from purestep._transforms.algorithms.adam.ademamix import (
    ScaleByAdEMAMixState,
    ScaleBySimplifiedAdEMAMixState,
    scale_by_ademamix,
    scale_by_simplified_ademamix,
)
from purestep._transforms.algorithms.adam.adopt import scale_by_adopt
from purestep._transforms.algorithms.adam.amsgrad import ScaleByAmsgradState, scale_by_amsgrad
from purestep._transforms.algorithms.adam.novograd import ScaleByNovogradState, scale_by_novograd
from purestep._transforms.algorithms.adam.radam import scale_by_radam
from purestep._transforms.algorithms.adam.sophia import (
    ScaleBySophiaState,
    gauss_newton_bartlett_diagonal,
    hutchinson_diagonal,
    scale_by_sophia,
)
from purestep._transforms.algorithms.adam.yogi import scale_by_yogi
from purestep._transforms.algorithms.automatic.dadapt import (
    ScaleByDAdaptState,
    ScheduledDAdaptState,
    scale_by_dadapt,
)
from purestep._transforms.algorithms.automatic.dog import (
    ScaleByDistanceOverGradientsState,
    ScaleByDoGState,
    scale_by_distance_over_gradients,
    scale_by_dog,
)
from purestep._transforms.algorithms.automatic.dowg import ScaleByDoWGState, scale_by_dowg
from purestep._transforms.algorithms.automatic.prodigy import (
    ScaleByProdigyState,
    ScheduledProdigyState,
    scale_by_prodigy,
)
from purestep._transforms.algorithms.automatic.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_eval_params,
)
from purestep._transforms.algorithms.layerwise.muon import ScaleByMuonState, scale_by_muon, scale_by_shape
from purestep._transforms.algorithms.layerwise.mup import hidden_matrices, scale_by_width
from purestep._transforms.algorithms.layerwise.orthogonal import MuonDimensionNumbers, orthogonalize
from purestep._transforms.algorithms.layerwise.splitting import MatricesAndRestState, matrices_and_rest
from purestep._transforms.algorithms.layerwise.trust_ratio import scale_by_trust_ratio
from purestep._transforms.algorithms.momentum.lion import ScaleByLionState, scale_by_lion
from purestep._transforms.algorithms.momentum.madgrad import (
    ScaleByMadgradState,
    ScheduledMadgradState,
    scale_by_madgrad,
)
from purestep._transforms.algorithms.momentum.optimistic import (
    ScaleByOptimisticGradientState,
    scale_by_optimistic_gradient,
)
from purestep._transforms.algorithms.momentum.polyak import scale_by_polyak
from purestep._transforms.algorithms.momentum.rprop import ScaleByRpropState, scale_by_rprop
from purestep._transforms.algorithms.momentum.sign import scale_by_sign
from purestep._transforms.core.base import stateless
from purestep._transforms.core.combining import named_chain
from purestep._transforms.core.masks import by_path
from purestep._transforms.inspection.memory import state_memory
from purestep._transforms.inspection.monitoring import MonitorState, SnapshotState, monitor, snapshot
from purestep._transforms.pieces.block import (
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    step_on_sphere,
)
from purestep._transforms.pieces.clipping import (
    adaptive_grad_clip,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    keep_params_nonnegative,
)
from purestep._transforms.pieces.momentum import TraceState, trace
from purestep._transforms.pieces.noise import AddNoiseState, add_noise
from purestep._transforms.pieces.normalizing import centralize, normalize_by_update_norm
from purestep._transforms.pieces.rounding import (
    MasterWeightsState,
    RoundStochasticallyState,
    master_weights,
    round_stochastically,
)
from purestep._transforms.pieces.scaling import (
    ScaleByLearningRateState,
    ScaleByScheduleState,
    ScheduledLearningRateState,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from purestep._transforms.pieces.weight_decay import add_decayed_weights, matrices
from purestep._transforms.wrappers.accumulation import (
    AccumulateState,
    ApplyEveryState,
    accumulate,
    apply_every,
    flush,
)
from purestep._transforms.wrappers.averaging import AveragedState, EmaState, averaged, ema
from purestep._transforms.wrappers.conditional import (
    ConditionallyMaskState,
    ConditionallyTransformState,
    conditionally_mask,
    conditionally_transform,
)
from purestep._transforms.wrappers.flattening import flatten
from purestep._transforms.wrappers.hyperparameters import InjectHyperparamsState, inject_hyperparams
from purestep._transforms.wrappers.lookahead import LookaheadState, lookahead
from purestep._transforms.wrappers.loss_scaling import DynamicLossScaleState, dynamic_loss_scale, loss_scale
from purestep._transforms.wrappers.masking import MaskedState, freeze, masked, set_to_zero
from purestep._transforms.wrappers.nonfinite import (
    ApplyIfFiniteState,
    SkipNonfiniteState,
    ZeroNansState,
    apply_if_finite,
    skip_nonfinite,
    zero_nans,
)
from purestep._transforms.wrappers.partitioning import PartitionState, group_table, partition
from purestep._transforms.wrappers.plateau import ReduceLROnPlateauState, reduce_on_plateau

__all__ = [
    # Building and choosing: transforms from functions, chains by name, parameters by path
    "by_path",
    "named_chain",
    "stateless",
    # Gradient clipping and bounds
    "adaptive_grad_clip",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "keep_params_nonnegative",
    # Scaling, momentum, weight decay, noise, half precision
    "add_decayed_weights",
    "add_noise",
    "AddNoiseState",
    "centralize",
    "master_weights",
    "MasterWeightsState",
    "matrices",
    "normalize_by_update_norm",
    "round_stochastically",
    "RoundStochasticallyState",
    "scale",
    "scale_by_learning_rate",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_schedule",
    "ScaleByLearningRateState",
    "ScaleByScheduleState",
    "ScheduledLearningRateState",
    "step_on_sphere",
    "trace",
    "TraceState",
    # Adam and its relatives
    "gauss_newton_bartlett_diagonal",
    "hutchinson_diagonal",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_belief",
    "scale_by_novograd",
    "scale_by_radam",
    "scale_by_simplified_ademamix",
    "scale_by_sophia",
    "scale_by_yogi",
    "ScaleByAdamState",
    "ScaleByAdanState",
    "ScaleByAdEMAMixState",
    "ScaleByAmsgradState",
    "ScaleByBeliefState",
    "ScaleByNovogradState",
    "ScaleBySimplifiedAdEMAMixState",
    "ScaleBySophiaState",
    # Second moments without momentum
    "FactoredState",
    "scale_by_adadelta",
    "scale_by_factored_rms",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_sm3",
    "scale_by_stddev",
    "ScaleByAdaDeltaState",
    "ScaleByRmsState",
    "ScaleByRssState",
    "ScaleByRStdDevState",
    "ScaleBySM3State",
    # Momentum and signs
    "scale_by_lion",
    "scale_by_madgrad",
    "scale_by_optimistic_gradient",
    "scale_by_polyak",
    "scale_by_rprop",
    "scale_by_sign",
    "ScaleByLionState",
    "ScaleByMadgradState",
    "ScaleByOptimisticGradientState",
    "ScaleByRpropState",
    "ScheduledMadgradState",
    # Layer by layer
    "hidden_matrices",
    "matrices_and_rest",
    "MatricesAndRestState",
    "MuonDimensionNumbers",
    "orthogonalize",
    "scale_by_muon",
    "scale_by_shape",
    "scale_by_trust_ratio",
    "scale_by_width",
    "ScaleByMuonState",
    # Automatic learning rates
    "scale_by_dadapt",
    "scale_by_distance_over_gradients",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_prodigy",
    "ScaleByDAdaptState",
    "ScaleByDistanceOverGradientsState",
    "ScaleByDoGState",
    "ScaleByDoWGState",
    "ScaleByProdigyState",
    "schedule_free",
    "schedule_free_eval_params",
    "ScheduledDAdaptState",
    "ScheduledProdigyState",
    "ScheduleFreeState",
    # Wrappers of transforms
    "accumulate",
    "AccumulateState",
    "apply_every",
    "apply_if_finite",
    "ApplyEveryState",
    "ApplyIfFiniteState",
    "averaged",
    "AveragedState",
    "conditionally_mask",
    "conditionally_transform",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "dynamic_loss_scale",
    "DynamicLossScaleState",
    "ema",
    "EmaState",
    "flatten",
    "flush",
    "freeze",
    "group_table",
    "inject_hyperparams",
    "InjectHyperparamsState",
    "lookahead",
    "LookaheadState",
    "loss_scale",
    "masked",
    "MaskedState",
    "partition",
    "PartitionState",
    "reduce_on_plateau",
    "ReduceLROnPlateauState",
    "set_to_zero",
    "skip_nonfinite",
    "SkipNonfiniteState",
    "zero_nans",
    "ZeroNansState",
    # Inspection: measurements of updates, memory of states
    "monitor",
    "MonitorState",
    "snapshot",
    "SnapshotState",
    "state_memory",
]
__dir__ = partial(sorted, __all__)
