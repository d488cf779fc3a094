"""Loss functions: pure functions of arrays, never of models.

A loss returns a `Mean` over elements, rows, tokens or sequences, so parts of a batch merge exactly; some
losses return metrics too. `weights` multiply the losses; inputs of weight 0 are skipped, even if they are
NaN. Losses are computed in float32 for any dtype of the inputs.
"""

from functools import partial

from purestep._losses.policy.advantages import (
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
)
from purestep._losses.policy.grpo import grpo_loss
from purestep._losses.policy.ppo import ppo_loss
from purestep._losses.policy.reinforce import reinforce_loss
from purestep._losses.preference.dpo import cpo_loss, dpo_loss, simpo_loss
from purestep._losses.preference.kto import kto_loss
from purestep._losses.preference.orpo import orpo_loss
from purestep._losses.supervised.binary import (
    binary_cross_entropy,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
)
from purestep._losses.supervised.contrastive import info_nce, ntxent, triplet_margin_loss
from purestep._losses.supervised.cosine import cosine_distance, cosine_similarity
from purestep._losses.supervised.dice import binary_dice_loss, dice_loss, multiclass_generalized_dice_loss
from purestep._losses.supervised.kl import (
    generalized_kl_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
)
from purestep._losses.supervised.likelihood import gaussian_nll_loss, nll_loss
from purestep._losses.supervised.margin import (
    hinge_loss,
    margin_ranking_loss,
    multiclass_hinge_loss,
    multiclass_perceptron_loss,
    perceptron_loss,
)
from purestep._losses.supervised.ranking import ranking_softmax_loss
from purestep._losses.supervised.regression import (
    huber_loss,
    l1_loss,
    l2_loss,
    log_cosh,
    smooth_l1_loss,
    squared_error,
)
from purestep._losses.supervised.smoothing import poly_loss_cross_entropy, smooth_labels
from purestep._losses.supervised.sparsemax import (
    make_fenchel_young_loss,
    multiclass_sparsemax_loss,
    sparsemax_loss,
)
from purestep._losses.tokens.chunked import linear_cross_entropy
from purestep._losses.tokens.cross_entropy import cross_entropy
from purestep._losses.tokens.ctc import ctc_loss
from purestep._losses.tokens.distillation import distillation_loss, soft_target_loss, top_k_logits
from purestep._losses.tokens.multi_token import MultiTokenPrediction, multi_token_loss
from purestep._losses.tokens.packing import (
    packed_attention_mask,
    packed_loss_mask,
    packed_positions,
    packed_segments,
)
from purestep._losses.tokens.sequence import (
    completion_mask,
    prompt_mask,
    sequence_logps,
    shift,
    token_logps,
    truncation_mask,
)

__all__ = [
    # Regression
    "huber_loss",
    "l1_loss",
    "l2_loss",
    "log_cosh",
    "smooth_l1_loss",
    "squared_error",
    "gaussian_nll_loss",
    # Binary labels
    "binary_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "hinge_loss",
    "perceptron_loss",
    "sparsemax_loss",
    # Classes
    "cross_entropy",
    "nll_loss",
    "poly_loss_cross_entropy",
    "smooth_labels",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "make_fenchel_young_loss",
    # Distributions
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "generalized_kl_divergence",
    # Embeddings
    "cosine_distance",
    "cosine_similarity",
    "info_nce",
    "ntxent",
    "triplet_margin_loss",
    # Ranking
    "margin_ranking_loss",
    "ranking_softmax_loss",
    # Segmentation
    "binary_dice_loss",
    "dice_loss",
    "multiclass_generalized_dice_loss",
    # Large vocabularies and several tokens
    "linear_cross_entropy",
    "multi_token_loss",
    "MultiTokenPrediction",
    # Sequences
    "ctc_loss",
    "shift",
    "token_logps",
    "sequence_logps",
    "completion_mask",
    "prompt_mask",
    "truncation_mask",
    # Packed rows
    "packed_attention_mask",
    "packed_loss_mask",
    "packed_positions",
    "packed_segments",
    # Distillation
    "distillation_loss",
    "soft_target_loss",
    "top_k_logits",
    # Preferences
    "cpo_loss",
    "dpo_loss",
    "kto_loss",
    "orpo_loss",
    "simpo_loss",
    # Policies
    "grpo_loss",
    "ppo_loss",
    "reinforce_loss",
    "generalized_advantages",
    "group_advantages",
    "leave_one_out_advantages",
]

__dir__ = partial(sorted, __all__)
