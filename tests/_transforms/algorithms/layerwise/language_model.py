"""The parameters of a small language model, all ones."""

import mlx.core as mx

PARAMS = {
    "embed_tokens": {"weight": mx.ones((5, 4))},
    "layers": [{"attention": {"weight": mx.ones((4, 4)), "bias": mx.ones(4)}, "norm": mx.ones(4)}],
    "lm_head": {"weight": mx.ones((5, 4), mx.bfloat16)},
}
