"""Low-rank adapters: LoRA and DoRA on the layers of a module, merged, saved and loaded.

Every function returns a new module and leaves the given one unchanged. `ps.functional` returns the adapters
alone in `params`.
"""

from functools import partial

from purestep._adapters.adding import dora, lora
from purestep._adapters.loading import load
from purestep._adapters.removing import merge, remove
from purestep._adapters.reporting import AdaptedLayer, Report, report
from purestep._adapters.saving import save

__all__ = [
    # Add adapters
    "lora",
    "dora",
    # Look at them
    "report",
    "Report",
    "AdaptedLayer",
    # Back to plain layers
    "merge",
    "remove",
    # Files
    "save",
    "load",
]

__dir__ = partial(sorted, __all__)
