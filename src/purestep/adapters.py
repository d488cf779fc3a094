"""Low-rank adapters: LoRA and DoRA on layers by path, merged, and stored in mlx-lm's layout.

Every function returns a new module and leaves the given one unchanged. `ps.functional` returns the adapters
alone in `params`.
"""

from functools import partial

from purestep._adapters.adding import dora, lora
from purestep._adapters.loading import load
from purestep._adapters.removing import merge, remove
from purestep._adapters.reporting import AdapterReport, AdapterRow, report
from purestep._adapters.saving import save

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
