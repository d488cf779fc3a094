"""Parameters and gradients as vectors of which each rank holds a part."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.packing import Packed, Shard, holds_packed, padded, part, shard_class
from purestep._core.types import Params, Updates
from purestep._steps.core.ranks.summing import Chain, Ranks
from purestep._transforms.core.packed import packed


def own_part(ranks: Ranks, params: Params) -> Shard:
    """Return the part of the parameters that this rank updates."""
    if isinstance(params, Shard):
        return params
    whole = as_vectors(params)
    kind = shard_class(type(whole), ranks.size)
    return kind(*(part(vector, ranks.rank, ranks.size) for vector in whole))


def as_vectors(params: Params) -> Packed:
    """Return parameters as vectors; those of `ps.packed` are returned as they are."""
    if isinstance(params, Packed):
        return params
    if holds_packed(params):
        raise checks.error("sharded", "params must be the model's own tree or all of it from ps.packed")
    return packed(params)


def scattered(chain: Chain, gradients: Updates, share: mx.array, like: Params) -> Shard:
    """Return this rank's part of the sum over ranks of gradients times the share of each, as it is sent.

    Args:
        chain: the sums over ranks.
        gradients: the gradients over the rows of this rank.
        share: 0-d float32, the weight of this rank as a part of that of all ranks.
        like: the parameters.
    """
    ranks = chain.ranks
    if isinstance(gradients, Packed):
        whole, vectors = type(gradients), [chain.scaled([vector], share) for vector in gradients]
    else:
        whole = type(as_vectors(like))
        vectors = whole.layout.pack(gradients, lambda arrays: chain.scaled(arrays, share))
    kind = shard_class(whole, ranks.size)
    return kind(*(_scattered(chain, vector) for vector in vectors))


def _scattered(chain: Chain, vector: mx.array) -> mx.array:
    ranks = chain.ranks
    if ranks.scatters:
        return chain.scatter(padded(vector, ranks.size))
    return part(chain.sum(vector), ranks.rank, ranks.size)


def gathered(chain: Chain, own: Shard, like: Params) -> Params:
    """Return whole parameters, or gradients or updates, from the parts of all ranks."""
    layout = own.whole.layout
    whole = own.whole(
        *(chain.gather(each)[: vector.ends[-1]] for each, vector in zip(own, layout.vectors, strict=True))
    )
    return whole if isinstance(like, Packed) else layout.unpack(whole, differentiable=False)


def whole_updates(
    chain: Chain | None, gradients: Updates, updates: Updates, like: Params
) -> tuple[Updates, Updates]:
    """Return gradients and updates like the parameters, for measurements."""
    if chain is None or not isinstance(gradients, Shard):
        return gradients, updates
    return gathered(chain, gradients, like), gathered(chain, updates, like)
