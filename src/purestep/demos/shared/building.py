"""How a demo builds its model and its optimizer."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

import purestep as ps

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def seeded(
    build: Callable[[], nn.Module], seed: int, *, remat: Sequence[str] = (), evaluate: bool = True
) -> tuple[ps.types.Apply, ps.types.Params]:
    """Return the forward pass and the first weights of a model; the seed decides the weights."""
    apply, params, _ = ps.functional(built(build, seed, evaluate=evaluate), remat=remat)
    return apply, params


def built(build: Callable[[], ModuleT], seed: int, *, evaluate: bool = True) -> ModuleT:
    """Return a model; the seed decides its first weights."""
    with ps.rng.scope(mx.random.key(seed)):
        model = build()
        if evaluate:
            mx.eval(model.parameters())
    return model


def clipped_adamw(peak_rate: float, steps: int) -> ps.GradientTransform:
    """Return AdamW with gradient clipping, weight decay on matrices, a warm-up and a cosine decay."""
    rate = ps.schedules.warmup_cosine_decay(0.0, peak_rate, steps // 20, steps, end_value=0.05 * peak_rate)
    return ps.chain(
        ps.transforms.clip_by_global_norm(1.0),
        ps.optimizers.adamw(rate, b2=0.99, weight_decay=0.1, mask=ps.transforms.matrices),
    )
