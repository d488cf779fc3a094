"""Captures of Metal. Here Metal is played by a record of calls: no machine of the tests has it."""

import mlx.core as mx
import pytest

import purestep as ps
from tests._loop.workload import STEP, At, start


@pytest.fixture
def calls(monkeypatch):
    """Pretend that Metal is there; return the calls that it gets, between steps."""
    made = []
    monkeypatch.setenv("MTL_CAPTURE_ENABLED", "1")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.metal, "start_capture", lambda path: made.append(path), raising=False)
    monkeypatch.setattr(mx.metal, "stop_capture", lambda: made.append("stop"), raising=False)
    return made


def counting(calls):
    def step(state, batch):
        calls.append("step")
        return STEP(state, batch)

    return step


def test_the_measured_steps_are_captured(calls, tmp_path):
    path = tmp_path / "a.gputrace"
    with ps.profile(steps=2, warmup=3, capture=path):
        ps.fit(counting(calls), start(), At(), steps=7)
    assert calls == ["step"] * 3 + [str(path)] + ["step"] * 2 + ["stop"] + ["step"] * 2


def test_an_error_ends_the_capture(calls, tmp_path):
    def fails(progress):
        raise KeyError

    callbacks = [ps.callbacks.every(3, fails)]
    with pytest.raises(KeyError), ps.profile(steps=9, warmup=1, capture=tmp_path / "a.gputrace"):
        ps.fit(STEP, start(), At(), steps=9, callbacks=callbacks)
    assert calls == [str(tmp_path / "a.gputrace"), "stop"]


def test_a_capture_that_metal_refuses_is_a_warning(calls, tmp_path, monkeypatch):
    def refuse(path):
        raise RuntimeError("no capture")

    monkeypatch.setattr(mx.metal, "start_capture", refuse)
    with (
        pytest.warns(UserWarning, match="is not captured: no capture"),
        ps.profile(steps=2, warmup=1, capture=tmp_path / "a.gputrace") as profile,
    ):
        ps.fit(STEP, start(), At(), steps=4)
    assert (len(profile.rows), calls) == (2, [])


def test_a_capture_that_cannot_be_made_is_refused_at_once(calls, tmp_path, monkeypatch):
    (tmp_path / "there.gputrace").mkdir()
    for path, rule in (
        (tmp_path / "a.trace", r"must end in \.gputrace"),
        (tmp_path / "there.gputrace", "must be a new path"),
        (tmp_path / "no" / "a.gputrace", "must lie in a directory"),
    ):
        with pytest.raises(ValueError, match=f"profile: capture {rule}"):
            ps.profile(capture=path)
    with pytest.raises(TypeError, match="profile: path must be a string or a Path"):
        ps.profile(capture=3)
    monkeypatch.setenv("MTL_CAPTURE_ENABLED", "0")
    with pytest.raises(ValueError, match="needs the environment variable MTL_CAPTURE_ENABLED=1"):
        ps.profile(capture=tmp_path / "a.gputrace")
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with pytest.raises(ValueError, match="profile: capture needs Metal"):
        ps.profile(capture=tmp_path / "a.gputrace")
