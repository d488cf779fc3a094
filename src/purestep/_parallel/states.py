"""States of `sharded`: whole ones, for checkpoints, and the parts of each rank."""

from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.packing import Packed, Shard, part
from purestep._parallel.groups import group_of
from purestep._steps.state import TrainState, check_state
from purestep._steps.step import Step
from purestep._transforms.core.base import GradientTransform


def gathered(
    state: TrainState, *, group: mx.distributed.Group | None = None, to: int | None = None
) -> TrainState | None:
    """Return the whole state from the parts that the ranks of `sharded` hold.

    Every process must call it at the same place. The result is an ordinary state, as of `data_parallel` or
    `train_step` with the same transform: save it on one rank, and restore it in any number of processes, with
    `divided` for `sharded`. One vector is gathered at a time. A state without parts is returned as it is.

    A `ps.checkpoint.Checkpointer` needs no whole state: each rank writes its part, and reads it back.

    Args:
        state: the state of this rank.
        group: the processes; `None` for all of them.
        to: the only rank that keeps the whole state; the others return `None` and need memory for one vector.

    Raises:
        ValueError: if the state has parts for another number of processes.

    >>> import purestep as ps
    >>> step = ps.sharded(lambda params, batch, rng: params["w"].sum(), ps.optimizers.adam(0.1))
    >>> state = ps.TrainState.create(ps.packed({"w": mx.ones(3)}), step.transform)
    >>> ps.checkpoint.save("sharded.safetensors", gathered(state))  # doctest: +SKIP
    """
    caller = "gathered"
    check_state(caller, state)
    processes = group_of(caller, group)
    if to is not None and checks.integer(caller, "to", to, least=0) >= processes.size():
        raise checks.error(caller, f"to must be less than {processes.size()}, the number of ranks, got {to}")
    kept = to is None or to == processes.rank()
    mx.eval(state)  # sums of the last step that one rank has read and another has not must not mix with these
    is_packed = isinstance(state.params, Packed)
    opt_state = _gathered(state.opt_state, processes, kept, is_packed)
    return state._replace(opt_state=opt_state) if kept else None


def _gathered(node: Any, group: mx.distributed.Group, kept: bool, is_packed: bool) -> Any:
    if isinstance(node, Shard):
        if node.count != group.size():
            raise checks.error(
                "gathered", f"state has the parts of {node.count} ranks, got a group of {group.size()}"
            )
        found = []
        for value, vector in zip(node, node.layout.vectors, strict=True):
            if isinstance(value, mx.array) and value.ndim == 1:
                value = mx.distributed.all_gather(value, group=group)[: vector.ends[-1]]
                mx.eval(value)  # here, so that every rank gathers in this order, and frees what it drops
            found.append(value if kept else ())
        whole = node.whole(*found)
        return whole if is_packed or not kept else node.whole.layout.unpack(whole, differentiable=False)
    below = tree.children(node)
    if not below:
        return node
    return _rebuilt(node, [_gathered(child, group, kept, is_packed) for _, child in below])


def divided(state: TrainState, step: Step, *, group: mx.distributed.Group | None = None) -> TrainState:
    """Return the part of this rank of a whole state, for a step of `sharded`.

    Args:
        state: a whole state, such as one that was restored from a checkpoint. Its optimizer state belongs to
            the transform that was passed to `sharded`.
        step: the step.
        group: the processes; `None` for all of them.

    Raises:
        ValueError: if the optimizer state belongs to another transform, with the path.

    >>> import purestep as ps
    >>> transform = ps.optimizers.adam(0.1)
    >>> state = ps.TrainState.create(ps.packed({"w": mx.ones(3)}), transform)
    >>> state = divided(state, ps.sharded(lambda params, batch, rng: params["w"].sum(), transform))
    """
    caller = "divided"
    check_state(caller, state)
    processes = group_of(caller, group)
    transform = step.transform
    if not isinstance(transform, GradientTransform):
        raise TypeError(f"{caller}: step must be a step of sharded, got one without a transform")
    like = transform.init(state.params)
    return state._replace(
        opt_state=_divided(state.opt_state, like, "opt_state", processes.rank(), processes.size())
    )


def _divided(node: Any, like: Any, path: str, rank: int, count: int) -> Any:
    if isinstance(like, Shard):
        if type(node) is type(like):
            return node
        vectors = node if isinstance(node, Packed) else like.whole.layout.pack(node)
        found = [
            part(vector, rank, count) if isinstance(want, mx.array) and want.ndim == 1 else vector
            for vector, want in zip(vectors, like, strict=True)
        ]
        mx.eval(found)  # the whole vectors can be freed
        return type(like)(*found)
    below, given = tree.children(like), tree.children(node)
    if not below:
        return node
    if given is None or [segment for segment, _ in given] != [segment for segment, _ in below]:
        raise checks.error("divided", f"{path} is not built as the state of the step's transform")
    return _rebuilt(
        like,
        [
            _divided(child, want, tree.join(path, segment), rank, count)
            for (segment, want), (_, child) in zip(below, given, strict=True)
        ],
    )


def _rebuilt(like: Any, children: list[Any]) -> Any:
    if type(like) is dict:
        return dict(zip(like, children, strict=True))
    return type(like)(*children) if tree.is_namedtuple(like) else type(like)(children)
