"""Published peaks: known chips, near names, bins of Apple chips, and what the tables say of themselves."""

import subprocess

import mlx.core as mx
import pytest

import purestep as ps
from purestep._hardware import lookup, machine

DTYPES = ("float32", "tf32", "float16", "bfloat16", "int8")
TERA = 1e12


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", mx.bfloat16, 312),
        ("A100-SXM4-40GB", "tf32", 156),  # older drivers leave the maker out
        ("NVIDIA H100 80GB HBM3", mx.float32, 67),
        ("nvidia h100  pcie", mx.float16, 756.5),
        ("NVIDIA H200", "int8", 1979),
        ("NVIDIA GeForce RTX 4090", mx.bfloat16, 165.2),
        ("Tesla T4", mx.float16, 65),
    ],
)
def test_peaks_are_those_of_the_datasheets(name, dtype, tera):
    assert ps.hardware.peak_flops(dtype, name) == tera * TERA


@pytest.mark.parametrize(
    ("name", "cores", "tera"),
    [("M1", 8, 2.6), ("M1 Pro", 16, 5.2), ("M1 Max", 32, 10.4), ("M2", 10, 3.6), ("M2 Max", 38, 13.6)],
)
def test_derived_peaks_are_within_3_percent_of_what_apple_states(name, cores, tera):
    got = ps.hardware.peak_flops(mx.float32, f"Apple {name}", cores=cores)
    assert got == pytest.approx(tera * TERA, rel=0.03)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "AMD EPYC",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H1000",
        "Apple M9 Max",
        "Apple M1 Maximum",
    ],
)
def test_a_name_that_is_not_in_the_table_is_unknown(name):
    """A MIG slice or a laptop card has another peak than the chip whose name begins its own."""
    assert {ps.hardware.peak_flops(dtype, name) for dtype in DTYPES} == {None}
    assert ps.hardware.bandwidth(name) is None


def test_figures_that_nobody_published_are_unknown():
    assert ps.hardware.peak_flops(mx.bfloat16, "Tesla V100-SXM2-16GB") is None  # Volta has no bfloat16
    assert ps.hardware.peak_flops("tf32", "Tesla T4") is None
    assert ps.hardware.peak_flops(mx.bfloat16, "NVIDIA GB10") is None
    assert ps.hardware.peak_flops(mx.float16, "Apple M5 Max", cores=40) is None
    assert ps.hardware.peak_flops(mx.float32, "Apple M4", cores=10) is None


def test_cores_decide_where_a_chip_has_several():
    assert ps.hardware.peak_flops(mx.float32, "Apple M2") is None
    eight, ten = (ps.hardware.peak_flops(mx.float32, "Apple M2", cores=cores) for cores in (8, 10))
    assert ten == pytest.approx(1.25 * eight)
    assert ps.hardware.peak_flops(mx.float32, "Apple M2", cores=9) is None
    assert ps.hardware.bandwidth("Apple M2") == 100e9  # both rows agree
    assert ps.hardware.bandwidth("Apple M3 Max") is None
    assert ps.hardware.bandwidth("Apple M3 Max", cores=40) == 400e9
    assert ps.hardware.peak_flops(mx.float16, "NVIDIA L4", cores=3) == 121 * TERA  # only Apple counts cores


def test_the_cpu_of_an_apple_chip_has_no_peak(monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda *given: {"device_name": "Apple M1 Max"})
    monkeypatch.setattr(lookup, "gpu_cores", lambda: 32)
    assert ps.hardware.peak_flops(mx.float32) is None
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert ps.hardware.peak_flops(mx.float32) == pytest.approx(10.6 * TERA, rel=0.01)
    assert ps.hardware.bandwidth() == 400e9
    monkeypatch.setattr(lookup, "gpu_cores", lambda: None)
    assert ps.hardware.peak_flops(mx.float32) is None


@pytest.mark.parametrize(
    ("said", "cores"),
    [('+-o AGX\n  | "gpu-core-count" = 24\n', 24), ("nothing", None), ('"gpu-core-count" = 0', None)],
)
def test_cores_of_a_mac_are_read_from_ioreg(monkeypatch, said, cores):
    done = subprocess.CompletedProcess([], 0, stdout=said)
    monkeypatch.setattr(lookup.sys, "platform", "darwin")
    monkeypatch.setattr(lookup.subprocess, "run", lambda *given, **options: done)
    assert ps.hardware.gpu_cores() == cores


def test_a_mac_without_ioreg_has_unknown_cores(monkeypatch):
    def fail(*given, **options):
        raise FileNotFoundError

    monkeypatch.setattr(lookup.sys, "platform", "darwin")
    monkeypatch.setattr(lookup.subprocess, "run", fail)
    assert ps.hardware.gpu_cores() is None


def test_every_row_has_a_source_and_plausible_figures():
    rows = ps.hardware.chips()
    keys = [(name, chip.cores) for chip in rows for name in chip.names]
    assert len({*keys}) == len(keys)
    for chip in rows:
        assert len(chip.source) > 20
        for figure in DTYPES:
            value = getattr(chip, figure)
            assert value is None or 1e12 < value < 1e16, (chip.names, figure)
        assert chip.bandwidth is None or 5e10 < chip.bandwidth < 1e13
        rates = [chip.float32, chip.tf32, chip.bfloat16, chip.int8]
        known = [rate for rate in rates if rate is not None]
        assert known == sorted(known), chip.names  # dense: fewer bits are never slower
        assert chip.derived == (chip.names[0].startswith("Apple") and chip.float32 is not None)


def test_wrong_arguments_are_refused():
    for dtype in ("float64", "bf16", mx.int32):
        with pytest.raises(ValueError, match="peak_flops: dtype must be one of float32, tf32"):
            ps.hardware.peak_flops(dtype, "NVIDIA L4")
    for arguments in ((32,), (mx.float32, 4)):
        with pytest.raises(TypeError, match="peak_flops: "):
            ps.hardware.peak_flops(*arguments)
    with pytest.raises(ValueError, match="bandwidth: cores must be at least 1"):
        ps.hardware.bandwidth("Apple M1", cores=0)


def test_memory_of_a_container_and_of_metal(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_limits", lambda: [limit])
    assert ps.hardware.memory().limit is None
    limit.write_text("max\n")
    assert ps.hardware.memory().limit is None
    limit.write_text("1000000\n")
    assert ps.hardware.memory().limit == 1_000_000
    limit.write_text(str(2**62))
    assert ps.hardware.memory().limit is None
    info = {"memory_size": 64, "max_recommended_working_set_size": 48, "device_name": "Apple M1 Max"}
    monkeypatch.setattr(mx, "device_info", lambda *given: info)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert ps.hardware.memory()[:2] == (64, 48)
    assert ps.hardware.device()[:3] == ("gpu", "metal", "Apple M1 Max")


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {"memory.max": "1000\n"}, 1000),
        ("0::/job/step\n", {"job/memory.max": "900\n", "job/step/memory.max": "max\n"}, 900),
        (
            "4:cpu,memory:/job\n0::/\n",
            {"memory/memory.limit_in_bytes": "800", "memory/job/memory.limit_in_bytes": "700"},
            700,
        ),
        ("0::/../outside\n", {"memory.max": "5000\n"}, 5000),
        (None, {}, None),
    ],
)
def test_the_limit_is_the_least_of_the_control_groups_of_the_process(
    monkeypatch, tmp_path, groups, files, limit
):
    """A job of a scheduler is in a group below the root, whose own file has no limit."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = tmp_path / "own"
    if groups is not None:
        own.write_text(groups)
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN", own)
    assert machine._container() == limit
