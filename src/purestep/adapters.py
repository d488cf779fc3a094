"""Low-rank adapters: LoRA and DoRA on layers by path, merged, and stored in mlx-lm's layout."""

from functools import partial

from purestep._adapters.files import load, save
from purestep._adapters.placing import AdapterReport, AdapterRow, dora, lora, merge, remove, report

__all__ = [
    # Adapters in a module
    "lora",
    "dora",
    "report",
    "AdapterReport",
    "AdapterRow",
    "merge",
    "remove",
    # On disk
    "save",
    "load",
]

__dir__ = partial(sorted, __all__)
