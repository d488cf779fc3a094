"""Load weights that other programs wrote, by name, into a module or the containers of a template."""

import os
from collections.abc import Iterable
from typing import Any

import mlx.nn as nn

from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.files.fitting import Convert, Options, read_weights
from purestep._checkpoint.files.foreign import weights_at
from purestep._checkpoint.files.into_module import module_with
from purestep._checkpoint.restoring.matching import Rename
from purestep._checkpoint.restoring.restore import Template


def load_weights(
    path: str | os.PathLike[str],
    *,
    like: Template,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
    convert: Convert | None = None,
) -> Template:
    """Read weights from safetensors files that any program wrote, as those on Hugging Face.

    Arrays are matched by name, such as `layers.0.weight`. With parameters as `like`, the result has all their
    containers, also empty ones, so it fits a state that was made from `like`. With a module, the result is a
    copy of the module with the arrays of the file, frozen ones, statistics and quantized weights included.
    `like` is left unchanged; `ps.write_back(model, params)` changes a model in place. One error lists every
    difference. `cast`, `partial` and `rename` each accept one kind of difference, and one `RestoreWarning`
    reports it.

    These files have no checksums: their headers are checked, their bytes are not. Arrays are not transposed
    unless `convert` does it: the axes of convolution weights have another order in PyTorch than in MLX.
    Pickles of PyTorch (`.bin`, `.pt`) are refused: reading one can run any code.

    Args:
        path: a safetensors file; an index, `model.safetensors.index.json`; or a directory that has one.
        like: the parameters that the files must have, as `functional` returns them; or the module. A tied
            array of a module may have any of its names in the file.
        cast: accept floating-point arrays of other dtypes and convert them to those of `like`.
        partial: patterns of names (`*` any characters, `?` one) that may be missing, extra or of another
            shape. The result has the arrays of `like` there.
        rename: from names in the files to names in `like`, for whole names or their leading parts
            (`{"model": ""}` drops one); or a function from name to name.
        convert: a function from all arrays of the files, by name, to those of `like`, by name, such as
            `model.sanitize` of mlx-lm. It receives arrays that are read when they are evaluated, in a dict
            that it may change. float8 arrays (E4M3) are given as their bytes, for `mx.from_fp8`.

    Returns:
        A tree of arrays in memory, independent of the files; or a copy of the module.

    Raises:
        FileNotFoundError: if the file does not exist, or the directory has no file or several.
        CorruptError: (a ValueError) if a file is cut, is no safetensors file, or lacks an array of the index.
        ValueError: if the arrays differ from `like` (the message lists every name that is missing, extra,
            or of another shape or dtype); if an array has a dtype that MLX cannot read, such as float64; for
            a pickle; for `rename` with `convert`; if the module cannot be copied.
        TypeError: if `convert` does not return arrays by name.
        OSError: if the system cannot read a file, which does not mean damage.
        MemoryError: if there is not enough memory for the arrays.

    >>> import mlx.core as mx, tempfile
    >>> file = tempfile.mkdtemp() + "/model.safetensors"
    >>> mx.save_safetensors(file, {"model.body.w": mx.ones(2)})
    >>> like = {"body": {"w": mx.zeros(2)}, "dropout": {}}
    >>> import warnings
    >>> with warnings.catch_warnings(action="ignore"):
    ...     load_weights(file, like=like, rename={"model": ""})
    {'body': {'w': array([1, 1], dtype=float32)}, 'dropout': {}}

    A convolution of PyTorch has its input channels on the second axis, one of MLX on the last:

    >>> mx.save_safetensors(file, {"weight": mx.zeros((8, 3, 5, 5)), "bias": mx.zeros(8)})
    >>> def channels_last(arrays):
    ...     return {name: mx.moveaxis(a, 1, -1) if a.ndim == 4 else a for name, a in arrays.items()}
    >>> load_weights(file, like=nn.Conv2d(3, 8, 5), convert=channels_last).weight.shape
    (8, 5, 5, 3)
    """
    caller = "checkpoint.load_weights"
    options = Options(cast, partial, rename, convert)
    weights = weights_at(caller, check_path(caller, path))
    template: Any = like
    if isinstance(template, nn.Module):
        loaded: Any = module_with(caller, weights, template, options)
        return loaded
    return read_weights(caller, weights, template, options)
