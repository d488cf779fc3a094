"""Loss functions and objectives: pure functions of arrays.

Every loss per token or per example is a `Mean`.
"""

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
    # Labels, numbers, embeddings
    "binary_cross_entropy",
    "binary_dice_loss",
    "cosine_distance",
    "cosine_similarity",
    "dice_loss",
    "gaussian_nll_loss",
    "generalized_kl_divergence",
    "hinge_loss",
    "huber_loss",
    "info_nce",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "l1_loss",
    "l2_loss",
    "log_cosh",
    "make_fenchel_young_loss",
    "margin_ranking_loss",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "nll_loss",
    "ntxent",
    "perceptron_loss",
    "poly_loss_cross_entropy",
    "ranking_softmax_loss",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "smooth_labels",
    "sparsemax_loss",
    "squared_error",
    "triplet_margin_loss",
    # Tokens and sequences
    "completion_mask",
    "cross_entropy",
    "ctc_loss",
    "distillation_loss",
    "linear_cross_entropy",
    "multi_token_loss",
    "MultiTokenPrediction",
    "packed_attention_mask",
    "packed_loss_mask",
    "packed_positions",
    "packed_segments",
    "prompt_mask",
    "sequence_logps",
    "shift",
    "soft_target_loss",
    "token_logps",
    "top_k_logits",
    "truncation_mask",
    # Preferences
    "cpo_loss",
    "dpo_loss",
    "kto_loss",
    "orpo_loss",
    "simpo_loss",
    # Policies
    "generalized_advantages",
    "group_advantages",
    "grpo_loss",
    "leave_one_out_advantages",
    "ppo_loss",
    "reinforce_loss",
]


def __dir__() -> list[str]:
    return sorted(__all__)
