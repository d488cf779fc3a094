"""Laws of composition: chains, masks, partitions and packing."""

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, Tree
from purestep._transforms.core.base import identity
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale
from purestep._transforms.wrappers.flattening import flatten
from purestep._transforms.wrappers.masking import masked
from purestep._transforms.wrappers.partitioning import partition
from purestep.testing._laws.core import Make, close, run, same, updated
from purestep.testing.samples import like


def neutrality(make: Make, params: Params) -> None:
    """`identity` before or after the transform in a chain changes no bit."""
    updates, state = run(make(), params, 2)
    for chained, position in ((chain(identity(), make()), 1), (chain(make(), identity()), 0)):
        got, states = run(chained, params, 2)
        same("neutrality", (got, states[position]), (updates, state), "in a chain with identity")


def associativity(make: Make, params: Params) -> None:
    """The nesting of chains changes no bit."""
    left, ((a, b), c) = run(chain(chain(scale(0.5), make()), scale(-2.0)), params, 2)
    right, (d, (e, f)) = run(chain(scale(0.5), chain(make(), scale(-2.0))), params, 2)
    same("associativity", (left, a, b, c), (right, d, e, f), "nested differently")


def complement(make: Make, params: Params) -> None:
    """For transforms that treat each leaf on its own: masking some leaves, then the rest, equals no mask."""
    chosen = {path: index % 2 == 0 for index, path in enumerate(tree.paths(params))}
    mask = tree.map_with_path(lambda path, _: chosen[path], params)
    rest = tree.map(lambda m: not m, mask)
    got, _ = run(chain(masked(make(), mask), masked(make(), rest)), params, 3)
    want, _ = run(make(), params, 3)
    close("complement", got, want, "masked, and masked with the complement")


def separation(make: Make, params: Params) -> None:
    """For transforms that treat each leaf on its own: a partition equals a separate run on each part."""
    labels = {path: "ab"[index % 2] for index, path in enumerate(tree.paths(params))}
    label_tree = tree.map_with_path(lambda path, _: labels[path], params)
    got, _ = run(partition({"a": make(), "b": make()}, label_tree), params, 3)
    for label in "ab":

        def part(values: Tree, label: str = label) -> dict[str, mx.array]:
            return {path: leaf for path, leaf in tree.items(values) if labels[path] == label}

        transform = make()
        state, updates = transform.init(part(params)), None
        for number in range(3):
            updates, state = updated(transform, part(like(params, number)), state, part(params))
        close("separation", part(got), updates, f"part {label}")


def packing(make: Make, params: Params) -> None:
    """For elementwise transforms: all leaves in one vector give the updates of the separate leaves."""
    params = tree.cast(params, mx.float32)
    got, _ = run(flatten(make()), params, 3)
    want, _ = run(make(), params, 3)
    close("packing", got, want, "packed in one vector")
