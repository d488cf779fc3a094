"""Objects of other libraries passed where a transform is expected, and what to pass instead."""

from typing import Any

_MLX = {
    "SGD": "optimizers.sgd",
    "RMSprop": "optimizers.rmsprop(..., eps_in_sqrt=False)",
    "Adagrad": "optimizers.adagrad",
    "AdaDelta": "optimizers.adadelta",
    "Adam": "optimizers.adam",
    "AdamW": "optimizers.adamw",
    "Adamax": "optimizers.adamax",
    "Lion": "optimizers.lion",
    "Adafactor": "optimizers.adafactor",
    "Muon": "optimizers.muon",
    "MultiOptimizer": "transforms.partition",
}


def meant_instead(value: Any) -> str | None:
    """Return the error text for an object of another library or an uncalled factory; otherwise `None`.

    Optimizers of MLX and optax have an `init` and an `update` too, with other arguments than a transform's.
    """
    kind = value if isinstance(value, type) else type(value)
    library = (kind.__module__ or "").partition(".")[0]
    if (kind.__module__ or "").startswith("mlx.optimizers"):
        ours = _MLX.get(kind.__name__, "purestep.optimizers")
        return f"got {kind.__name__} of mlx.optimizers, which changes arrays in place: use {ours}"
    if library in ("torch", "keras"):
        return f"got {kind.__name__} of {library}: use one of purestep.optimizers"
    if library == "optax":
        return "got a transformation of optax, which computes with JAX: purestep has one of the same name"
    if callable(value) and not isinstance(value, type) and hasattr(value, "__name__"):
        name = value.__name__
        return f"got {value!r}" + ("" if name == "<lambda>" else f": call it, {name}(...)")
    return None
