"""The computed costs of large runs, against the records and against sums by hand."""

import re
from pathlib import Path

import pytest

from benchmarks import scaling as benchmark
from benchmarks.workloads import scaling

PAGE = Path(__file__).parents[2] / ".github/docs/scaling.md"
RATES = scaling.Rates(flops=1e14, copy=1e12, link=1e11, network=1e10, latency=0.0, memory=1e12)
MODEL = scaling.Model("toy", 1e9, 10, 1000, vocabulary=1000, context=0)


def test_the_steps_that_were_measured_are_computed_as_closely_as_the_page_says():
    for row in benchmark.checks(*benchmark.rates(400e9, 141e9)):
        few_tokens = row[0].startswith("18.8B")  # 256: small products
        assert float(row[-1]) == pytest.approx(1, abs=0.165 if few_tokens else 0.045), row


def test_the_time_is_that_of_a_sum_by_hand():
    # 1e4 tokens: 6e13 operations; update: 2 + 2 + 2 + 16 bytes of 1e9 parameters
    alone = scaling.cost(MODEL, 1, RATES, tokens=1e4, sharded=False)
    assert alone.seconds == pytest.approx(0.6 + 0.022)
    assert alone.efficiency == 1
    eight = scaling.cost(MODEL, 8, RATES, tokens=1e4, sharded=False)
    assert eight.seconds == pytest.approx(alone.seconds + 0.004 + 2 * 7 / 8 * 2e9 / 1e11)
    divided = scaling.cost(MODEL, 8, RATES, tokens=1e4, sharded=True)
    assert divided.seconds == pytest.approx(eight.seconds - 0.022 * 7 / 8)
    hosts = scaling.cost(MODEL, 16, RATES, tokens=1e4, sharded=False)
    assert hosts.seconds == pytest.approx(alone.seconds + 0.004 + 2 * 15 / 16 * 2e9 / 1e10)


def test_blocks_are_recomputed_only_where_the_step_would_not_fit():
    whole = scaling.cost(MODEL, 8, RATES, tokens=1e4, sharded=True)
    # parameters 2, state 1, gradients 1/4 bytes; activations 53e8, logits 6e7
    assert whole.memory == pytest.approx(1.1 * (2e9 + 1e9 + 0.25e9 + 53e8 + 6e7))
    assert not whole.recomputes
    small = RATES._replace(memory=5e9)
    tight = scaling.cost(MODEL, 8, small, tokens=1e4, sharded=True)
    assert tight.recomputes
    assert tight.fits
    assert tight.seconds == pytest.approx(whole.seconds + 0.2)
    assert not scaling.cost(MODEL, 8, small, tokens=1e4, sharded=False).fits


def test_the_page_has_the_tables_of_the_command():
    tables = benchmark.markdown(benchmark.computed([400.0, 50.0], 141.0, 8192))
    (shown,) = re.findall(r"<!-- scaling -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert shown.strip() == tables.strip()
