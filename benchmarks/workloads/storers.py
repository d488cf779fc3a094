"""Who saves and restores in the benchmark of checkpoints: each library as its documentation has it."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._checkpoint.disk import atomic

BASE = "mx.save_safetensors"
LEAF = 1 << 22  # elements of a large leaf, 16 MiB


def state(size: int) -> dict[str, Any]:
    """Return a state of so many bytes: parameters, two moments, a bfloat16 tenth, small leaves."""
    count = max(1, size // (3 * 4 * LEAF))

    def part(seed: int) -> dict[str, Any]:
        keys = mx.random.split(mx.random.key(seed), count)
        large = {f"w{i}": mx.random.normal((LEAF // 1024, 1024), key=key) for i, key in enumerate(keys)}
        return {**large, "norm": mx.ones(1024), "half": mx.ones((256, 1024), mx.bfloat16)}

    made = {"params": part(0), "opt_state": {"mu": part(1), "nu": part(2)}, "step": mx.array(7)}
    mx.eval(made)
    return made


def synced(path: Path) -> None:
    """Wait until a file, or all files of a directory, are on the disk."""
    for place in [*path.rglob("*"), path] if path.is_dir() else [path]:
        atomic.flush(place)
    atomic.flush(path.parent)


class Purestep:
    """`Checkpointer`, one checkpoint, every byte verified."""

    def convert(self, made: Any) -> Any:
        return made

    def save(self, path: Path, made: Any) -> None:
        with ps.checkpoint.Checkpointer(path, asynchronous=False) as checkpointer:
            checkpointer.save(made, step=1)

    def load(self, path: Path, made: Any) -> Any:
        return ps.checkpoint.Checkpointer(path).restore(like=made).state


class File(Purestep):
    """`checkpoint.save` and `load`: one file."""

    def save(self, path: Path, made: Any) -> None:
        ps.checkpoint.save(path, made)

    def load(self, path: Path, made: Any) -> Any:
        return ps.checkpoint.load(path, like=made)


class Mlx(Purestep):
    """What MLX itself does, with the same fsync and no checksums."""

    def save(self, path: Path, made: Any) -> None:
        named = path.with_suffix(".safetensors")
        mx.save_safetensors(str(named), dict(ps.tree.items(made)))
        named.replace(path)
        synced(path)

    def load(self, path: Path, made: Any) -> Any:
        arrays: Any = mx.load(str(path), format="safetensors")
        mx.eval(arrays)
        return ps.tree.unflatten(made, [arrays[name] for name in ps.tree.paths(made)])


class Torch:
    """`torch.save` and `torch.load`."""

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")

    def convert(self, made: Any) -> Any:
        numpy = _numpy(made)
        return ps.tree.map(self._torch.from_numpy, numpy)

    def save(self, path: Path, made: Any) -> None:
        self._torch.save(made, path)
        synced(path)

    def load(self, path: Path, made: Any) -> Any:
        return self._torch.load(path, weights_only=True)


class Flax:
    """`flax.serialization`, its msgpack written to a file."""

    def __init__(self) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or it claims most of a GPU's memory
        self._flax: Any = importlib.import_module("flax.serialization")
        self._jax: Any = importlib.import_module("jax")

    def convert(self, made: Any) -> Any:
        return self._jax.tree.map(self._jax.numpy.asarray, _numpy(made))

    def save(self, path: Path, made: Any) -> None:
        path.write_bytes(self._flax.to_bytes(made))
        synced(path)

    def load(self, path: Path, made: Any) -> Any:
        return self._jax.tree.map(self._jax.numpy.asarray, self._flax.from_bytes(made, path.read_bytes()))


class Orbax(Flax):
    """`orbax.checkpoint.StandardCheckpointer`, waited for."""

    def __init__(self) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        self._jax = importlib.import_module("jax")
        self._checkpointer = importlib.import_module("orbax.checkpoint").StandardCheckpointer()

    def save(self, path: Path, made: Any) -> None:
        self._checkpointer.save(path, made)
        self._checkpointer.wait_until_finished()
        synced(path)

    def load(self, path: Path, made: Any) -> Any:
        return self._checkpointer.restore(path, made)


CONTESTANTS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "purestep Checkpointer": (Purestep, ()),
    "purestep save, load": (File, ()),
    BASE: (Mlx, ()),
    "torch.save": (Torch, ("torch", "numpy")),
    "flax msgpack": (Flax, ("flax", "jax", "numpy")),
    "orbax": (Orbax, ("orbax", "jax", "numpy")),
}
PEERS = {name for name in CONTESTANTS if not name.startswith("purestep") and name != BASE}


def _numpy(made: Any) -> Any:
    # numpy has no bfloat16: float16 has as many bytes.
    numpy: Any = importlib.import_module("numpy")
    return ps.tree.map(lambda x: numpy.array(x.astype(mx.float16) if x.dtype == mx.bfloat16 else x), made)


def same(first: Any, second: Any) -> bool:
    """Compare two restored trees of any library, leaf by leaf."""
    pairs = zip(ps.tree.leaves(first), ps.tree.leaves(second), strict=True)
    return all(bool((a == b).all()) for a, b in pairs)
