"""A different transform for each group of parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from purestep._core import checks, tree
from purestep._core.packing import viewed
from purestep._core.tree.patterns import compile_pattern, shown_paths
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.core.masks import merge, same_structure, select, select_extra, spread

Label: TypeAlias = str | int
Labels: TypeAlias = Tree | Callable[[Params], Tree] | Sequence[tuple[str, Label]]
"""A tree of labels, a function `params -> such a tree`, or a list of `(path pattern, label)`."""


class PartitionState(NamedTuple):
    """State of `partition`.

    Attributes:
        inner_states: a dict from each label to the state of its transform. In its trees with the structure of
            params, `()` replaces each parameter of another group, so nothing is stored for it.
    """

    inner_states: dict[Label, Tree]


def partition(transforms: Mapping[Label, GradientTransform], param_labels: Labels) -> GradientTransform:
    """Apply a transform to each group of parameters; a label assigns a parameter to a group.

    Every parameter has exactly one label, and each transform receives only the parameters of its group. To
    freeze a group, use `set_to_zero()` as its transform.

    Differences from optax:

    1. `param_labels` may be a list of `(pattern, label)`, with the patterns of `by_path`.
    2. Extra arguments with the structure of the updates are always divided in the same way.
    3. `state.inner_states[label]` is the transform's own state, with no `MaskedState` around it.

    Args:
        transforms: a dict from label to transform. A label is a string or an integer.
        param_labels: a tree of labels with the structure of the parameters, where one label may stand for
            a whole subtree; or a function of the parameters that returns such a tree; or a list of
            `(pattern, label)` pairs, where the first pattern that matches a parameter's path decides.

    Raises:
        ValueError: at init or update, for a parameter without a label or with a label that `transforms`
            does not have, or for labels of another structure. The error names the path.

    >>> import mlx.core as mx
    >>> from purestep.transforms import scale
    >>> groups = [("*.bias", "slow"), ("*", "fast")]
    >>> transform = partition({"fast": scale(-1.0), "slow": scale(-0.5)}, groups)
    >>> params = {"fc": {"weight": mx.array(0.0), "bias": mx.array(0.0)}}
    >>> gradients = {"fc": {"weight": mx.array(2.0), "bias": mx.array(2.0)}}
    >>> transform.update(gradients, transform.init(params), params)[0]
    {'fc': {'weight': array(-2, dtype=float32), 'bias': array(-1, dtype=float32)}}
    """
    caller = "partition"
    if not isinstance(transforms, Mapping) or not transforms:
        raise TypeError(f"{caller}: transforms must be a dict from label to transform, got {transforms!r}")
    members = dict(transforms)
    for label, transform in members.items():
        _check_label(caller, "transforms", label)
        check_transform(caller, f"transforms[{label!r}]", transform)
    inner_updates = {label: taking_extra(transform) for label, transform in members.items()}

    def masks(params: Params) -> dict[Label, Tree]:
        labels = resolve_labels(caller, param_labels, params, known=members)
        return {label: tree.map(lambda own, label=label: own == label, labels) for label in members}

    def init(params: Params) -> PartitionState:
        chosen = masks(params)
        return PartitionState({k: members[k].init(select(mask, params)) for k, mask in chosen.items()})

    def update(
        updates: Updates, state: PartitionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PartitionState]:
        out, states = updates, {}
        for label, chosen in masks(updates if params is None else params).items():
            some, states[label] = inner_updates[label](
                select(chosen, updates),
                state.inner_states[label],
                None if params is None else select(chosen, params),
                **select_extra(chosen, extra),
            )
            out = merge(caller, chosen, some, out)
        return out, PartitionState(states)

    return checked(caller, init, update, elementwise=True)


def resolve_labels(
    caller: str, param_labels: Any, params: Params, known: Mapping[Label, Any] | None = None
) -> Tree:
    """Return labels of any form as a tree with the structure of the parameters; refuse unknown labels."""

    def check(path: str, label: Any) -> None:
        _check_label(caller, f"param_labels at {path}", label)
        if known is not None and label not in known:
            has = ", ".join(repr(name) for name in known)
            raise checks.error(caller, f"param_labels gives {path} the label {label!r}; transforms has {has}")

    model = viewed(params)
    if _are_pairs(param_labels) and not same_structure(param_labels, model):
        values = _by_pattern(caller, param_labels, model)
    else:
        values = param_labels(model) if callable(param_labels) else param_labels
    return spread(caller, "param_labels", values, params, check)


def group_table(params: Params, param_labels: Labels) -> str:
    """Return a text table of the group of each parameter and the size of each group.

    Args:
        params: a tree of arrays.
        param_labels: as in `partition`.

    >>> import mlx.core as mx
    >>> params = {"fc": {"weight": mx.zeros((2, 3)), "bias": mx.zeros(2)}}
    >>> print(group_table(params, [("*.bias", "slow"), ("*", "fast")]))
    path       label  shape
    fc.weight  fast   (2, 3)
    fc.bias    slow   (2,)
    <BLANKLINE>
    label  arrays  parameters
    fast        1           6
    slow        1           2
    total       2           8
    """
    params = viewed(params)
    labels = tree.leaves(resolve_labels("group_table", param_labels, params))
    named = tree.items(params)
    rows = [("path", "label", "shape")]
    sizes: dict[str, list[int]] = {}
    for (path, leaf), label in zip(named, labels, strict=True):
        rows.append((path or "the tree", str(label), str(tuple(leaf.shape))))
        sizes.setdefault(str(label), []).append(leaf.size)
    totals = [("label", "arrays", "parameters")]
    totals += [(label, str(len(found)), str(sum(found))) for label, found in sizes.items()]
    totals.append(("total", str(len(named)), str(tree.size(params))))
    return "\n".join([*_columns(rows, "<<<"), "", *_columns(totals, "<>>")])


def _by_pattern(caller: str, pairs: Sequence[tuple[str, Label]], params: Params) -> Tree:
    """Return the tree of labels that a list of `(pattern, label)` gives."""
    compiled = [(compile_pattern(caller, pattern), label) for pattern, label in pairs]
    missing = []

    def label_of(path: str, _: Any) -> Label:
        for pattern, label in compiled:
            if pattern.fullmatch(path):
                return label
        missing.append(path)
        return ""

    labels = tree.map_with_path(label_of, params)
    if missing:
        raise checks.error(
            caller, f"no pattern of param_labels matches {shown_paths(missing)}; end with ('*', label)"
        )
    return labels


def _are_pairs(labels: Any) -> bool:
    return (
        isinstance(labels, (list, tuple))
        and bool(labels)
        and all(type(pair) is tuple and len(pair) == 2 and isinstance(pair[0], str) for pair in labels)
    )


def _check_label(caller: str, name: str, label: Any) -> None:
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise TypeError(f"{caller}: {name}: a label must be a string or an integer, got {label!r}")


def _columns(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Return the rows as lines; `sides` holds the alignment of each column, `<` or `>`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[f"{cell:{s}{w}}" for cell, s, w in zip(row, sides, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]
