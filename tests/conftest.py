"""Settings that every test shares."""

import os
import signal

# CUDA's default is TF32: products with 10 bits of mantissa, and no comparison could be sharp.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# Commands of the command line would start the test process again, with OpenBLAS.
os.environ.setdefault("PURESTEP_BLAS", "bundled")

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, settings

# The machines are shared: a slow example says nothing about the code.
settings.register_profile(
    "purestep", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.load_profile("purestep")


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="run the fault tests of storage at full scale (minutes)"
    )


def pytest_configure():
    # A job in the background ignores Ctrl-C, and so would the processes that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def full(request):
    """Tell whether the tests of faults run at full scale."""
    return request.config.getoption("--full")


@pytest.fixture(autouse=True)
def global_stream_untouched():
    """Fail a test whose code under test draws from MLX's global random stream."""
    mx.random.seed(1)
    before = mx.random.state[0].tolist()
    yield
    assert mx.random.state[0].tolist() == before, "the global random stream was used"
