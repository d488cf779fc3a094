"""Save and load a state as one safetensors file, or as several with an index."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

import mlx.core as mx

from purestep._checkpoint.disk import atomic, device, tensors
from purestep._checkpoint.disk.index import read_index
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.files.fitting import Options, read_weights
from purestep._checkpoint.files.foreign import weights_at
from purestep._checkpoint.files.sealed import header_in_file, header_in_index, stored_tree
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import CorruptError, kind_of, reading, seal
from purestep._checkpoint.format.names import INDEX, KEY, MANIFEST, PART, SHARD, SUFFIX, index_of
from purestep._checkpoint.format.safetensors_header import metadata_of
from purestep._checkpoint.restoring.restore import Rename, Template, restore
from purestep._core import checks
from purestep._core.collective import group_of
from purestep._core.packing import shards_in
from purestep._core.types import Tree
from purestep._steps.state import check_arrays

_CHECKPOINT = "restore of a Checkpointer on the directory above reads it"


def save(path: str | os.PathLike[str], state: Tree, *, shard_bytes: int | None = None) -> None:
    """Write a state, or any tree of arrays, to one safetensors file.

    Each array keeps its dtype and is stored under its path in the tree, such as `params.layers.0.weight`.
    Save `state.params` to have the model's own names. Any safetensors reader opens the file. Containers,
    NamedTuple types, `None` and a checksum of each array are in the metadata. The file is complete or absent:
    an existing file stays until the new one replaces it. Missing parent directories are created.

    Args:
        path: the file to write.
        state: a tree of arrays. It is evaluated on the calling thread.
        shard_bytes: divide a larger state into files of at most this many bytes, or of one array;
            `None`: one file. The files are `name-00001-of-00003.safetensors`, and
            `name.safetensors.index.json` is written last, as on Hugging Face. An existing
            divided state is not replaced. Files without an index, which a killed save leaves, are replaced.

    Raises:
        TypeError: for a leaf that is not an array, with its path.
        ValueError: for an array that no such file can hold, such as float64 or one of more than 64 axes; for
            an array whose path in the tree has more than 10,000 characters; for a file name that is not
            UTF-8 or ends in `.index.json`.
        FileExistsError: if the name already holds a divided state; if it holds one file and this state is
            divided; if a file that would be replaced belongs to another state.
        OSError: if the file cannot be written. The previous file is unchanged, unless the message says that
            the new file is written and only the flush of its directory failed.

    >>> import mlx.core as mx, tempfile
    >>> file = tempfile.mkdtemp() + "/state.safetensors"
    >>> save(file, {"w": mx.array([1.0, 2.0])})
    >>> load(file, like={"w": mx.zeros(2)})
    {'w': array([1, 2], dtype=float32)}
    """
    caller = "checkpoint.save"
    check_arrays(caller, "state", state)
    shard_bytes = tensors.check_limit(caller, shard_bytes)
    path = check_path(caller, path)
    if path.name.endswith(INDEX):
        raise checks.error(caller, f"path must not end in {INDEX}, as an index does, got {path.name!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{caller}: path must be a file, got the directory {path}")
    arrays, spec = tensors.described(state, caller)
    try:
        _write(caller, path, arrays, spec, shard_bytes)
    finally:
        arrays.clear()
        device.trim()


@overload
def load(
    path: str | os.PathLike[str],
    *,
    like: None = None,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
    group: mx.distributed.Group | None = None,
) -> Tree: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    like: Template,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
    group: mx.distributed.Group | None = None,
) -> Template: ...


def load(
    path: str | os.PathLike[str],
    *,
    like: Tree = None,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
    group: mx.distributed.Group | None = None,
) -> Tree:
    """Read a state that `save` wrote, every byte verified.

    With `like` the result has the containers of the template, and one error lists every difference.
    `cast`, `partial` and `rename` each accept one kind of difference; one `RestoreWarning` reports
    what they changed.

    A header that is not sound is refused before it takes more than twice the size of its file.

    A safetensors file that another program wrote is read into `like` as `load_weights` does, and the
    `RestoreWarning` says that its bytes could not be verified.

    Args:
        path: the file to read. For a divided state: the path it was saved to, or its `.index.json`.
        like: a tree with the structure, shapes and dtypes that the file must have, such as the state
            before the first step. Without it, plain dicts, lists and tuples are returned; a NamedTuple
            becomes a dict.
        cast: accept floating-point arrays of other dtypes and convert them to the template's.
        partial: patterns of paths (`*` any characters, `?` one, as in `transforms.by_path`) that may be
            missing, extra or of another shape. The result has the arrays of the template there. A
            container that matches a pattern may have another type; its contents are still compared.
        rename: from names in the file to names in the template, for whole paths or their leading parts
            (`{"params.encoder": "params.body.encoder"}`, or `{"model": ""}` to drop one); or a function
            from path to path, which is also called for the paths of `None` and empty containers.
        group: the processes, if `like` is a state of `sharded`; `None` for all of them. Each rank reads its
            part.

    Returns:
        A tree of arrays in memory, independent of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        CorruptError: (a ValueError) if it is cut, changed, or no safetensors file.
        ValueError: if it differs from the template (the message lists every path that is missing, extra,
            or of another shape, dtype or container); if both one file and a divided state exist; or if
            another program wrote it and `like` is not given.
        OSError: if the system cannot read it, which does not mean damage (permissions, too many open
            files, an error of the disk).
        MemoryError: if there is not enough memory for the arrays.

    Warns:
        HyperparameterWarning: for a constant hyperparameter, such as a learning rate, that differs from that
            of `like`. The stored value is returned; `ps.set_hyperparameters(state, learning_rate=...)`
            changes it. Scheduled values are not compared: the schedule of the code takes effect.

    >>> import mlx.core as mx, tempfile
    >>> file = tempfile.mkdtemp() + "/state.safetensors"
    >>> save(file, {"w": mx.array([1.0, 2.0]), "b": (mx.array(3), None)})
    >>> load(file)
    {'w': array([1, 2], dtype=float32), 'b': (array(3, dtype=int32), None)}
    """
    caller = "checkpoint.load"
    path = check_path(caller, path)
    index = _index_of(path)
    if kind_of(caller, index) == "file":
        if kind_of(caller, path):
            raise checks.error(
                caller, f"{path} and {index.name} are two states of one name: remove the older"
            )
        path = index
    if group is not None:
        group_of(caller, group)
    if kind_of(caller, path) != "file":
        hint = f": {_CHECKPOINT}" if _is_checkpoint(path) else ""
        raise FileNotFoundError(f"{caller}: no file at {path}{hint}")
    content, held = _header(caller, path)
    if content is None:
        return _foreign(caller, path, like, cast=cast, partial=partial, rename=rename)
    stored = stored_tree(caller, path, content, held)
    return restore(caller, stored, like, cast=cast, partial=partial, rename=rename, group=group)


def _write(caller: str, path: Path, arrays: dict[str, mx.array], spec: Any, shard_bytes: int | None) -> None:
    files = tensors.shards(path.name.removesuffix(SUFFIX), arrays, shard_bytes)
    index = _index_of(path)
    older = [index] if len(files) == 1 else [index, path, path.parent / index.name.removesuffix(INDEX)]
    for taken in older:
        if kind_of(caller, taken):
            raise FileExistsError(
                f"{caller}: {path.parent} already holds {taken.name}: "
                "delete that state first, or save under another name"
            )
    for name in files:
        check_free(caller, path.parent / name, None if len(files) == 1 else index)
    sums = {name: checksum.of(checksum.raw(array)) for name, array in arrays.items()}
    header = seal({"tree": spec, "checksums": sums})
    if len(files) == 1:
        atomic.write(path, lambda temporary: tensors.write(temporary, arrays, {KEY: header}))
        return
    for name, shard in files.items():
        try:
            atomic.write(
                path.parent / name,
                lambda temporary, shard=shard: tensors.write(temporary, shard, {PART: index.name}),
            )
        except atomic.NotFlushedError as error:
            raise OSError(error.errno, f"{caller}: {index} was not written: {error.strerror}") from error
    atomic.write_text(index, tensors.index(files, {KEY: header}))


def check_free(caller: str, path: Path, index: Path | None = None) -> None:
    """Refuse to replace a file of another state: one that an index names, or no part of what `index` names.

    Without an index, `path` is the whole of a state and may be replaced by another whole.
    """
    if _index_of(path).exists():
        raise FileExistsError(
            f"{caller}: {path.parent} already holds {_index_of(path).name}, a state of the name {path.name}: "
            "delete that state first, or save under another name"
        )
    if not os.path.lexists(path):
        return
    for other in path.parent.glob("*" + INDEX):
        if other.is_file() and _names(caller, other, path.name):
            raise FileExistsError(
                f"{caller}: {path} is a part of the state that {other.name} names: "
                "delete that state first, or save under another name"
            )
    if index is None:
        return
    try:
        part = metadata_of(caller, path)[0].get(PART)
    except CorruptError:
        part = None
    if part != index.name.encode():
        raise FileExistsError(
            f"{caller}: {path} is no part of an unfinished {index.name}: "
            "move or delete that file first, or save under another name"
        )


def _names(caller: str, index: Path, name: str) -> bool:
    """Tell whether an index, sound or not, names a file."""
    with reading(caller, index):
        text = index.read_bytes()
    return any(form.encode() in text for form in (json.dumps(name), f'"{name}"'))


def _index_of(path: Path) -> Path:
    return path.parent / index_of(path.name)


def _is_checkpoint(path: Path) -> bool:
    return path.name.startswith("step_") and (path / MANIFEST).exists()


def _foreign(caller: str, path: Path, like: Tree, **options: Any) -> Tree:
    """Read a file of another program into a template."""
    said = f"{path} is a sound safetensors file that purestep did not write"
    if _is_checkpoint(path.parent):
        said = f"{path} is a part of a checkpoint ({_CHECKPOINT})"
    if next(shards_in(like), None) is not None:
        raise checks.error(caller, f"{said}: read it with checkpoint.load_weights(path, like=state.params)")
    if like is None:
        for name in read_index(caller, path, KEY).files if path.name.endswith(INDEX) else []:
            metadata_of(caller, path.parent / name)
        raise checks.error(
            caller, f"{said}: read it with checkpoint.load_weights(path, like=params), or with mx.load"
        )
    weights = weights_at(caller, path)
    note = f"{said}: it has no checksums, so its bytes were not verified"
    try:
        return read_weights(caller, weights, like, Options(**options), note=note)
    except CorruptError:
        raise
    except ValueError as error:
        hint = "checkpoint.load_weights(path, like=state.params) reads weights into a state's parameters"
        raise ValueError(f"{error}\n{said}; {hint}") from None


def _header(caller: str, path: Path) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """Return the content of a state's header, or `None`; and for an index the file of each array."""
    if path.name.endswith(INDEX):
        index = read_index(caller, path, KEY)
        content = header_in_index(caller, path, index)
        return content, None if content is None else dict(index.placed())
    shard = SHARD.fullmatch(path.name)
    if shard and KEY not in metadata_of(caller, path)[0]:
        raise checks.error(caller, f"{path} is one of several files of a state: load {index_of(shard[1])}")
    return header_in_file(caller, path), None
