"""MLX's settings for NVIDIA GPUs; MLX itself reads them once, so only the environment is tested."""

import os

import mlx.core as mx
import pytest

from purestep.hardware import configure_cuda

NAMES = ("MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER", "MLX_ENABLE_CACHE_THRASHING_CHECK")


@pytest.fixture
def cuda(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "get_peak_memory", lambda: 4)


def test_the_variables_that_are_not_set_are_set(cuda, monkeypatch):
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "50")
    assert configure_cuda(group_elements=3 * 2**20) == {
        "MLX_MAX_MB_PER_BUFFER": "3",
        "MLX_ENABLE_CACHE_THRASHING_CHECK": "0",
    }
    assert [os.environ[name] for name in NAMES] == ["50", "3", "0"]
    assert configure_cuda() == {}


def test_it_is_too_late_after_the_first_arrays(cuda, monkeypatch):
    monkeypatch.setattr(mx, "get_peak_memory", lambda: 1_000_000)
    with pytest.raises(RuntimeError, match="at the beginning of the program"):
        configure_cuda()
    assert "MLX_MAX_MB_PER_BUFFER" not in os.environ


def test_other_devices_need_no_settings(monkeypatch):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    monkeypatch.delenv("MLX_MAX_MB_PER_BUFFER", raising=False)
    assert configure_cuda() == {}
    assert "MLX_MAX_MB_PER_BUFFER" not in os.environ


@pytest.mark.parametrize("options", [{"group_kernels": 0}, {"group_elements": 1000}])
def test_numbers_are_checked(options):
    with pytest.raises(ValueError, match="configure_cuda: group_"):
        configure_cuda(**options)
