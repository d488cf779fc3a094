"""The measurements that a `TrainConfig` names."""

from collections.abc import Callable

from purestep._core import checks
from purestep._core.types import Params
from purestep._loop.config.config import TrainConfig
from purestep._measures.curvature import curvature
from purestep._measures.norms import drift, grad_norms, update_ratios, weight_norms
from purestep._measures.shares import nonfinite_share, zero_share
from purestep._steps.core.measuring import Measurement

_MAKERS: dict[str, Callable[..., Measurement]] = {
    "grad_norms": grad_norms,
    "weight_norms": weight_norms,
    "update_ratios": update_ratios,
    "nonfinite_share": nonfinite_share,
    "zero_share": zero_share,
    "curvature": curvature,
}


def measurements(caller: str, config: TrainConfig, reference: Params | None) -> list[Measurement]:
    """Return the measurements of a configuration, in its order; refuse a drift without a reference."""
    every = config.measure_every
    if "drift" not in config.measure:
        return [_MAKERS[name](every=every) for name in config.measure]
    if reference is None:
        raise checks.error(
            caller, "reference must be the first parameters, since config.measure has 'drift', got None"
        )
    return [
        drift(reference, every=every) if name == "drift" else _MAKERS[name](every=every)
        for name in config.measure
    ]
