"""What a row of the tables of chips says."""

from typing import NamedTuple

DTYPES = ("float32", "tf32", "float16", "bfloat16", "int8")


class Chip(NamedTuple):
    """The published peak of one GPU. A figure that nobody published is `None`.

    Attributes:
        names: what `mx.device_info()["device_name"]` says on this chip.
        cores: the number of GPU cores, for Apple chips that are sold with several numbers of cores; `None`
            for other chips.
        float32: FLOP/s of float32 outside tensor cores.
        tf32: FLOP/s of float32 products whose inputs are rounded to TF32, on NVIDIA tensor cores.
        float16: FLOP/s of float16 products that are summed in float32.
        bfloat16: FLOP/s of bfloat16 products that are summed in float32.
        int8: operations per second of int8 products.
        bandwidth: bytes per second of the memory.
        source: where the figures come from: a datasheet, a whitepaper or a measured clock.
        derived: `True` if FLOP/s were computed as cores x ALUs per core x 2 x clock.
    """

    names: tuple[str, ...]
    cores: int | None
    float32: float | None
    tf32: float | None
    float16: float | None
    bfloat16: float | None
    int8: float | None
    bandwidth: float | None
    source: str
    derived: bool = False
