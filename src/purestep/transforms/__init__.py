"""Gradient transforms: what stands between gradients and parameters, one family a file."""

from purestep.transforms.accumulation import AccumulateState as AccumulateState
from purestep.transforms.accumulation import accumulate as accumulate
from purestep.transforms.adam import ScaleByAdamState as ScaleByAdamState
from purestep.transforms.adam import scale_by_adam as scale_by_adam
from purestep.transforms.clipping import clip_by_global_norm as clip_by_global_norm
from purestep.transforms.momentum import TraceState as TraceState
from purestep.transforms.momentum import trace as trace
from purestep.transforms.scaling import ScaleByLearningRateState as ScaleByLearningRateState
from purestep.transforms.scaling import scale as scale
from purestep.transforms.scaling import scale_by_learning_rate as scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights as add_decayed_weights
from purestep.transforms.weight_decay import matrices as matrices
