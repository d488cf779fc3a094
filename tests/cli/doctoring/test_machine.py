"""The checks of what there is."""

import mlx.core as mx
import pytest

from purestep._hardware.machine import Memory
from purestep.cli.doctoring import machine


def versions(monkeypatch, **installed):
    found = {name.replace("_", "-"): version for name, version in installed.items()}
    monkeypatch.setattr(machine, "_version", found.get)
    monkeypatch.setattr(machine.metadata, "version", found.__getitem__)
    return machine.versions()


def test_parts_of_mlx_have_one_version(monkeypatch):
    assert versions(monkeypatch, mlx="0.33.0", mlx_cpu="0.33.0").state == "ok"
    found = versions(monkeypatch, mlx="0.33.0", mlx_cpu="0.32.4")
    assert (found.state, found.said) == ("wrong", "mlx 0.33.0 does not match mlx-cpu 0.32.4")
    assert found.remedy == "Install both in one command: pip install -U mlx==0.33.0 mlx-cpu==0.33.0"
    found = versions(monkeypatch, mlx="0.33.0", mlx_metal="0.33.1")
    assert found.remedy.endswith("mlx==0.33.0 mlx-metal==0.33.0")  # not the package of another device
    found = versions(monkeypatch, mlx="0.32.3")
    assert (found.state, found.remedy) == ("wrong", "pip install -U mlx")
    assert "needs mlx 0.32.4" in found.said
    assert versions(monkeypatch, mlx="0.32.10.dev3").state == "ok"


def test_extras_that_are_absent_are_named(monkeypatch):
    found = versions(monkeypatch, mlx="0.33.0", rich="15.0", xxhash="3.5", numpy="2", mlx_lm="0.32")
    assert found.said.endswith("optional, not installed: matplotlib (purestep[demo])")


@pytest.mark.parametrize(
    ("blas", "installed", "backend", "state", "remedy"),
    [
        ("openblas", "libopenblas.so.0", "cpu", "ok", ""),
        ("accelerate", None, "metal", "ok", ""),
        ("bundled", "libopenblas.so.0", "cpu", "advice", "OpenBLAS is 20 to 40 times as fast: start Python"),
        ("bundled", None, "cpu", "advice", "OpenBLAS is 20 to 40 times as fast: install it"),
        ("bundled", None, "cuda", "ok", ""),
    ],
)
def test_blas_of_the_cpu(monkeypatch, blas, installed, backend, state, remedy):
    monkeypatch.setattr(machine.hardware, "blas", lambda: blas)
    monkeypatch.setattr(machine.hardware, "find_openblas", lambda: installed)
    monkeypatch.setattr(machine, "backend", lambda: backend)
    found = machine.blas()
    assert found.state == state
    assert found.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("variables", "state", "said"),
    [
        ({}, "advice", "after about 800 graphs"),
        ({"MLX_CUDA_GRAPH_CACHE_SIZE": "1000"}, "advice", "after about 2000 graphs"),
        ({"MLX_CUDA_GRAPH_CACHE_SIZE": "many"}, "advice", "after about 800 graphs"),
        ({"MLX_ENABLE_CACHE_THRASHING_CHECK": "1"}, "advice", "after about 800 graphs"),
        ({"MLX_ENABLE_CACHE_THRASHING_CHECK": "0"}, "ok", "are safe"),
    ],
)
def test_settings_of_cuda_graphs(monkeypatch, variables, state, said):
    assert machine.graphs() is None or machine.backend() == "cuda"
    monkeypatch.setattr(machine, "backend", lambda: "cuda")
    for name in ("MLX_CUDA_GRAPH_CACHE_SIZE", "MLX_ENABLE_CACHE_THRASHING_CHECK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = machine.graphs()
    assert found.state == state
    assert said in found.said


def test_memory_of_a_small_container_is_advice(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: Memory(2**34, 2**28, 0, 0, 0))
    found = machine.room()
    assert (found.state, found.said) == ("advice", "17.2 GB in total; the container allows 268.4 MB")
    monkeypatch.setattr(machine, "memory", lambda: Memory(None, None, 0, 0, 0))
    assert (machine.room().state, machine.room().said) == ("ok", "the total is unknown")
    monkeypatch.setattr(machine, "memory", lambda: Memory(2**36, 2**35, 0, 0, 0))
    monkeypatch.setattr(machine, "backend", lambda: "metal")
    monkeypatch.setattr(machine, "_wired_limit", lambda: 2**35)
    assert "Metal recommends at most 34.4 GB; the system wires at most 34.4 GB" in machine.room().said


@pytest.mark.parametrize(("free", "state"), [(2**36, "ok"), (2**30, "advice")])
def test_a_gpu_whose_memory_others_hold_is_advice(monkeypatch, free, state):
    monkeypatch.setattr(machine, "memory", lambda: Memory(2**36, None, 0, 0, 0))
    monkeypatch.setattr(mx, "device_info", lambda *given: {"free_memory": free})
    assert machine.room().state == state
    assert " free" in machine.room().said


def test_a_backend_that_mlx_does_not_know_is_not_available(monkeypatch):
    def available(name):
        if name == "jaccl":
            raise ValueError(name)
        return name == "ring"

    monkeypatch.setattr(mx.distributed, "is_available", available)
    assert machine.distributed().figures == {"ring": True, "mpi": False, "nccl": False, "jaccl": False}


def test_a_cpu_beside_a_gpu_is_advice(monkeypatch):
    monkeypatch.setattr(machine.mx, "is_available", lambda device: True)
    if machine.device().kind == "cpu":
        assert machine.chip().state == "advice"
