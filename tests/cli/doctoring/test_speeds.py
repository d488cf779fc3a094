"""The checks that measure, with devices and disks of other speeds."""

import errno
import os
from types import SimpleNamespace

import mlx.core as mx
import pytest

from purestep._hardware.rates import Rate
from purestep.cli.doctoring import compiling, preflight, speeds


@pytest.fixture
def gpu(monkeypatch):
    """An H100 whose rates are given."""

    def at(products, copies):
        monkeypatch.setattr(speeds, "backend", lambda: "cuda")
        peaks = {"tf32": 494.5e12, mx.float32: 67e12, mx.bfloat16: 989.5e12}
        monkeypatch.setattr(speeds, "peak_flops", lambda dtype: peaks[dtype])
        monkeypatch.setattr(speeds, "bandwidth", lambda: 3.35e12)
        monkeypatch.setattr(speeds, "matmul_rate", lambda dtype, seconds: Rate(products, 1.0, 3))
        monkeypatch.setattr(speeds, "copy_rate", lambda seconds: Rate(copies, 1.0, 3))

    return at


def test_rates_are_compared_with_published_peaks(gpu, monkeypatch):
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    gpu(494.5e12, 2.5e12)
    found = speeds.products()
    assert found.state == "ok"
    assert found.said == (
        "matrix products: 494 TFLOP/s in float32, 100% of the published peak in TF32; "
        "494 TFLOP/s in bfloat16, 50% of the published peak"
    )
    assert speeds.copies().said == "copies: 2.5 TB/s read and written, 75% of the published bandwidth"
    gpu(30e12, 0.1e12)
    assert (speeds.products().state, speeds.copies().state) == ("advice", "advice")
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert "45% of the published peak; " in speeds.products().said


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "Free space"),
        (errno.EACCES, "Change the permissions"),
        (errno.EROFS, "The file system can only be read"),
        (errno.EIO, "Choose another one"),
    ],
)
def test_a_disk_that_cannot_be_written_is_wrong_and_keeps_nothing(monkeypatch, tmp_path, number, remedy):
    def fail(handle, data):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(speeds.os, "write", fail)
    found = speeds.disk(tmp_path)
    assert found.state == "wrong"
    assert found.remedy.startswith(remedy)
    assert not list(tmp_path.iterdir())


def test_a_slow_or_nearly_full_disk_is_advice(monkeypatch, tmp_path):
    monkeypatch.setattr(speeds, "_written", lambda place: (10_000_000, 1.0))
    monkeypatch.setattr(speeds.shutil, "disk_usage", lambda place: SimpleNamespace(free=2**40))
    assert "faster disk" in speeds.disk(tmp_path).remedy
    monkeypatch.setattr(speeds.shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    assert "Free space" in speeds.disk(tmp_path).remedy


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").write_text("")
    found = speeds.disk(tmp_path / "file")
    assert (found.state, "Not a directory" in found.said) == ("wrong", True)
    assert found.remedy == "It is a file, or lies in one; --dir checks another directory"
    assert speeds.disk(tmp_path / "absent").remedy.startswith("Create the directory;")


def test_a_kernel_with_other_values_is_wrong():
    result = {"calls": 1, "seconds": 1.0, "error": 0.5}
    found = compiling._judged(result, False, {"g++": None}, "/nowhere")
    assert (found.state, "differ by 0.5" in found.said) == ("wrong", True)
    result["error"] = float("nan")
    assert compiling._judged(result, False, {"g++": None}, "/nowhere").state == "wrong"


def test_a_process_that_hangs_or_dies_is_a_finding(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "_SECONDS", 0.01)
    assert "more than" in compiling.compilation().said
    monkeypatch.setattr(compiling, "_SECONDS", 60.0)
    monkeypatch.setattr(compiling, "_PROGRAM", "import os; os.abort()")
    assert "ended with status -6" in compiling.compilation().said


def test_a_step_with_wrong_numbers_or_no_progress_is_wrong(monkeypatch):
    assert preflight.preflight().state == "ok"
    monkeypatch.setattr(preflight, "_network", lambda: [1.0, 1.0])
    assert "did not fall" in preflight.preflight().said
    monkeypatch.setattr(preflight, "_squares", lambda params, batch, rng: params["w"].sum())
    assert "a training step gave loss" in preflight.preflight().said
