"""The GPUs of Apple chips: FLOP/s derived from cores and clock, bandwidth as Apple states it."""

from purestep._hardware.chips import Chip

_ALUS = 128  # per GPU core, each one multiply-add a cycle: M1 and M2, and by Apple's figures later ones

# The highest clock of the GPU in GHz. Apple states no clocks.
_INFO = "clock: philipturner/applegpuinfo (github.com/philipturner/applegpuinfo)"
_POWER = "clock: powermetrics"
_CLOCKS = {
    "M1": (1.278, f"{_INFO}; Apple states 2.6 TFLOPS for 8 cores (M1 announcement, 2020-11-10)"),
    "M1 Pro": (1.296, f"{_POWER} and {_INFO}, issue 7; Apple states 5.2 TFLOPS for 16 cores (2021-10-18)"),
    "M1 Max": (1.296, f"{_INFO}; Apple states 10.4 TFLOPS for 32 cores (2021-10-18)"),
    "M1 Ultra": (1.296, "clock: that of the two M1 Max dies it is made of"),
    "M2": (1.398, f"{_INFO}; Apple states 3.6 TFLOPS for 10 cores (M2 announcement, 2022-06-06)"),
    "M2 Pro": (1.398, _INFO),
    "M2 Max": (1.398, f"{_INFO}, issue 10"),
    "M2 Ultra": (1.398, "clock: that of the two M2 Max dies it is made of"),
    "M3 Max": (1.380, f"{_POWER}, in philipturner/applegpuinfo issue 4"),
    "M3 Ultra": (1.380, "clock: that of the two M3 Max dies it is made of"),
    "M4 Pro": (1.578, f"{_POWER}, Howard Oakley, M4 Pro full on (eclecticlight.co, 2025-01-22)"),
    "M5 Max": (1.620, f"{_POWER}, in github.com/feedback-assistant/reports issue 830"),
}

# Chip, its numbers of GPU cores, and GB/s.
_SPECS: tuple[tuple[str, tuple[int, ...], float | None], ...] = (
    ("M1", (7, 8), 68.25),
    ("M1 Pro", (14, 16), 200.0),
    ("M1 Max", (24, 32), 400.0),
    ("M1 Ultra", (48, 64), 800.0),
    ("M2", (8, 10), 100.0),
    ("M2 Pro", (16, 19), 200.0),
    ("M2 Max", (30, 38), 400.0),
    ("M2 Ultra", (60, 76), 800.0),
    ("M3", (8, 9, 10), 100.0),
    ("M3 Pro", (14, 18), 150.0),
    ("M3 Max", (30,), 300.0),
    ("M3 Max", (40,), 400.0),
    ("M3 Ultra", (60, 80), 819.0),
    ("M4", (8, 9, 10), 120.0),
    ("M4 Pro", (16, 20), 273.0),
    ("M4 Max", (32,), 410.0),
    ("M4 Max", (40,), 546.0),
    ("M5", (8, 9, 10), 153.0),
    ("M5 Pro", (16, 20), 307.0),
    ("M5 Max", (32,), None),  # Apple's announcement of 2026-03-03 states that of 40 cores alone
    ("M5 Max", (40,), 614.0),
)


def _chip(name: str, cores: int, gigabytes: float | None) -> Chip:
    clock, source = _CLOCKS.get(name, (None, "no clock of the GPU is published"))
    rate = None if clock is None else cores * _ALUS * 2 * clock * 1e9
    # The cores of an M5 hold matrix units for 16-bit numbers, whose rate Apple does not state. Before that,
    # products of 16-bit numbers use the float32 units.
    half = None if name.startswith("M5") else rate
    stated = f"bandwidth: Apple's technical specifications of Macs with {name} (support.apple.com/specs)"
    return Chip(
        names=(f"Apple {name}",),
        cores=cores,
        float32=rate,
        tf32=None,
        float16=half,
        bfloat16=half,
        int8=None,
        bandwidth=None if gigabytes is None else gigabytes * 1e9,
        source=f"{source}; {stated}",
        derived=rate is not None,
    )


CHIPS = tuple(_chip(name, cores, speed) for name, counts, speed in _SPECS for cores in counts)
