"""One of several processes that save, restore, stop or train a large model: `... in_group '{...}'`."""

import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

import purestep as ps

ps.hardware.configure_cuda()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

GROUP = mx.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()


def _digest(state: Any) -> str:
    found = hashlib.sha256()
    for path, leaf in ps.tree.items(ps.unpacked(state)):
        found.update(path.encode())
        found.update(bytes(memoryview(leaf)))
    return found.hexdigest()


def _small() -> tuple[ps.Step, ps.TrainState]:
    """Return a step of `sharded` and its state: a perceptron whose arrays do not divide by the ranks."""
    with ps.rng.scope(mx.random.key(0)):
        model = nn.Sequential(nn.Linear(61, 257), nn.Tanh(), nn.Linear(257, 13))
        mx.eval(model.parameters())
    apply, params, _ = ps.functional(model)

    def loss_fn(params: Any, batch: Any, rng: mx.array) -> ps.Mean:
        return ps.Mean.of(mx.square(apply(params, batch, rng=rng)))

    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-3))
    step = ps.sharded(loss_fn, transform)
    assert step.transform is not None
    return step, ps.TrainState.create(ps.packed(params), step.transform)


def save(task: dict[str, Any]) -> dict[str, Any]:
    """Make three steps and save."""
    step, state = _small()
    for number in range(3):
        state, _ = step(state, mx.random.normal((8, 61), key=mx.random.key(100 * number + RANK)))
    mx.eval(state)
    with ps.checkpoint.Checkpointer(task["directory"]) as checkpointer:
        checkpointer.save(state)
    return _facts(state)


def restore(task: dict[str, Any]) -> dict[str, Any]:
    """Restore what `save` wrote."""
    _, state = _small()
    with ps.checkpoint.Checkpointer(task["directory"]) as checkpointer:
        return _facts(checkpointer.restore(like=state).state)


def _facts(state: ps.TrainState) -> dict[str, Any]:
    own = sum(leaf.nbytes for leaf in ps.tree.leaves(state.opt_state))
    whole = ps.parallel.gathered(state, to=0)
    return {"own": own, "digest": None if whole is None else _digest(whole)}


def stop(task: dict[str, Any]) -> dict[str, Any]:
    """Make steps within the watchdog; one rank stops itself at the third."""
    step, state = _small()
    with ps.parallel.watchdog(timeout=task["timeout"]) as dog:
        for number in range(1000):
            if number == 3 and task["ill"] == RANK:
                print(json.dumps({"moment": time.monotonic()}), flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
            state, metrics = step(state, mx.ones((8, 61)))
            mx.eval(state, metrics)
            dog.beat()
    return {}


class _Large(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, vocabulary: int):
        from benchmarks.peers.with_mlx import Block

        super().__init__()
        self.wte, self.ln = nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.blocks = [Block(width, heads) for _ in range(layers)]

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return logits [batch, seq, vocabulary] for tokens [batch, seq]."""
        x = self.wte(tokens)
        for block in self.blocks:
            x = block(x)
        return self.wte.as_linear(self.ln(x))


def large(task: dict[str, Any]) -> dict[str, Any]:
    """Train a GPT in bfloat16 whose AdamW state, in float32, has as many bytes as `task` says."""
    width, heads, vocabulary, context = task["width"], task["width"] // 64, 8192, 256
    layers = max(1, round((task["bytes"] / 8 - vocabulary * width) / (12 * width**2)))
    apply, params, _ = ps.functional(_Large(layers, width, heads, vocabulary))
    keys = iter(mx.random.split(mx.random.key(0), len(ps.tree.leaves(params))))

    def drawn(path: str, leaf: mx.array) -> mx.array:
        if leaf.ndim > 1:
            made = 0.01 * mx.random.normal(leaf.shape, mx.bfloat16, key=next(keys))
        else:
            made = mx.full(leaf.shape, float("weight" in path), mx.bfloat16)
        mx.eval(made)
        return made

    params = ps.tree.map_with_path(drawn, params)
    parameters = sum(leaf.size for leaf in ps.tree.leaves(params))

    def loss_fn(params: Any, batch: Any, rng: mx.array) -> ps.Mean:
        return ps.losses.cross_entropy(apply(params, batch["inputs"], rng=rng), batch["targets"])

    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-4))
    step = ps.sharded(loss_fn, transform, reduce_dtype=mx.bfloat16)
    assert step.transform is not None
    params = ps.packed(params)
    state = ps.TrainState.create(params, step.transform)
    del params
    mx.eval(state)
    mx.clear_cache()
    own = sum(leaf.nbytes for leaf in ps.tree.leaves(state.opt_state))
    tokens = mx.random.randint(0, vocabulary, (1, context + 1), key=mx.random.key(RANK))
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    compiled, times, losses = ps.compiled(step), [], []
    mx.reset_peak_memory()
    for _ in range(6):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        mx.eval(state, metrics)
        times.append(time.perf_counter() - begin)
        losses.append(metrics["loss"].item())
    return {
        "parameters": parameters, "layers": layers, "own": own, "times": times, "losses": losses,
        "peak": mx.get_peak_memory(),
    }  # fmt: skip


def main() -> None:
    """Do the task and print what rank 0 found."""
    task = json.loads(sys.argv[1])
    found = {"save": save, "restore": restore, "stop": stop, "large": large}[task["what"]](task)
    if RANK == 0:
        print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
