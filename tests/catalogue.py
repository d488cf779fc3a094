"""The one table of transforms under law: a new transform joins with one line."""

from collections.abc import Callable

import mlx.core as mx

import purestep as ps
from purestep import optimizers, schedules, transforms

CATALOGUE: dict[str, Callable[[], ps.GradientTransform]] = {
    "identity": ps.identity,
    "chain of nothing": ps.chain,
    "clip_by_global_norm": lambda: transforms.clip_by_global_norm(0.5),
    "scale": lambda: transforms.scale(-0.3),
    "scale_by_learning_rate": lambda: transforms.scale_by_learning_rate(0.1),
    "scale_by_learning_rate, scheduled": lambda: transforms.scale_by_learning_rate(
        schedules.linear(1.0, 0.0, 5)
    ),
    "scale_by_adam": transforms.scale_by_adam,
    "scale_by_adam, nesterov": lambda: transforms.scale_by_adam(nesterov=True, eps_root=1e-8),
    "scale_by_adam, mu in bfloat16": lambda: transforms.scale_by_adam(mu_dtype=mx.bfloat16),
    "add_decayed_weights": lambda: transforms.add_decayed_weights(0.1),
    "add_decayed_weights, masked": lambda: transforms.add_decayed_weights(0.1, mask=transforms.matrices),
    "trace": lambda: transforms.trace(0.9),
    "trace, nesterov": lambda: transforms.trace(0.9, nesterov=True),
    "accumulate": lambda: transforms.accumulate(optimizers.adam(0.1), every=2),
    "sgd": lambda: optimizers.sgd(0.1, momentum=0.9),
    "adam": lambda: optimizers.adam(1e-2),
    "adamw": lambda: optimizers.adamw(schedules.warmup_cosine_decay(0.0, 1e-2, 2, 6), weight_decay=0.1),
    "clip, then adamw": lambda: ps.chain(transforms.clip_by_global_norm(1.0), optimizers.adamw(1e-2)),
}
