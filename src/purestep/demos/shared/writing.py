"""Text that a model of fixed context writes, token by token."""

import mlx.core as mx

import purestep as ps


def continued(
    apply: ps.types.Apply,
    params: ps.types.Params,
    window: mx.array,
    count: int,
    *,
    temperature: float,
    seed: int,
) -> mx.array:
    """Return `count` tokens after a window [context]; the window moves along with them."""
    key, drawn = mx.random.key(seed), []
    for number in range(count):
        logits = apply(params, window[None])[0, -1]
        token = mx.random.categorical(logits / temperature, key=ps.rng.fold_in(key, number))
        token = token.astype(mx.int32)[None]
        window = mx.concatenate([window[1:], token])
        mx.eval(window)
        drawn.append(token)
    return mx.concatenate(drawn)
