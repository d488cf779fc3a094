"""Fixtures for the tests of a run's checkpoints."""

import pytest

from purestep.checkpoint import Checkpointer


@pytest.fixture
def checkpointer(tmp_path):
    with Checkpointer(tmp_path / "run") as made:
        yield made
