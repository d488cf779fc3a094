"""The command replay: from a bundle and the name of a step to the array where it went wrong."""

import json
import re
import shutil
import sys

import mlx.core as mx
import pytest

from purestep import __main__, replay
from purestep.cli import replay as command
from tests.refusals import parts

USERS = '''
"""A user's module: a transform with a state of its own, and a step."""
from typing import NamedTuple
import mlx.core as mx
import purestep as ps

print("imported")

class Counted(NamedTuple):
    calls: mx.array

def counting():
    def update(updates, state, params=None):
        return updates, Counted(state.calls + 1)
    return ps.GradientTransform(lambda params: Counted(mx.array(0)), update)

def loss_fn(params, batch, rng):
    return mx.sqrt(params["w"] * batch["x"]).sum()

transform = ps.chain(ps.optimizers.sgd(0.1), counting())
step = ps.train_step(loss_fn, transform)
other = ps.train_step(lambda p, b, r: 2 * loss_fn(p, b, r), transform)
foreign = ps.train_step(lambda p, b, r: p["v"].sum(), transform)
build = lambda: step
number = 3
def fails(): raise KeyError("no data")
def nothing(): return None
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the module of a user, and a bundle that a loop of his wrote."""
    root = tmp_path_factory.mktemp("users")
    (root / "users_step.py").write_text(USERS)
    sys.path.insert(0, str(root))
    import users_step as users

    state = users.ps.TrainState.create({"w": mx.ones(2)}, users.transform)
    recorder = replay.record(users.step, root / "bundles")
    recorder(state, {"x": mx.array([1.0, 0.0])})
    with pytest.warns(replay.ReplayWarning):
        recorder.close()
    yield root
    sys.path.remove(str(root))
    del sys.modules["users_step"]


@pytest.fixture
def bundle(place, monkeypatch):
    monkeypatch.chdir(place)
    return str(place / "bundles" / "step_00000000")


def call(capsys, *arguments):
    code = command.main(arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


@pytest.mark.parametrize("name", ["step", "build"])
def test_a_bundle_is_replayed_and_the_culprit_named(capsys, bundle, name):
    code, out, err = call(capsys, bundle, "--step", f"users_step:{name}")
    assert code == 0, err
    assert "first: gradients.w: 1 NaN of 2, first at [1]" in out
    assert "reproduced bit for bit" in out


def test_json_is_all_there_is_on_stdout(capsys, bundle, monkeypatch):
    monkeypatch.delitem(sys.modules, "users_step")  # so that it is imported, and prints, again
    code, out, err = call(capsys, bundle, "--step", "users_step:step", "--json")
    said = json.loads(out)
    assert (code, err) == (0, "imported\n")
    assert said["first"] == {"path": "gradients.w", "nan": 1, "infinite": 0, "size": 2, "first": [1]}
    assert said["reproduced"] is True
    assert said["reason"] == ["metrics.grad_norm", "params.w"]
    assert [stage["name"] for stage in said["stages"]][:3] == ["state", "batch", "loss"]


def test_a_step_that_comes_out_otherwise_is_told_by_the_exit_code(capsys, bundle):
    code, out, _ = call(capsys, bundle, "--step", "users_step:other")
    assert code == 1
    assert "not reproduced bit for bit: metrics.loss" in out


def test_a_bundle_made_with_openblas_asks_for_it(capsys, bundle, monkeypatch):
    started = []
    monkeypatch.setattr(command, "with_openblas", lambda: started.append(1))
    assert call(capsys, bundle, "--step", "users_step:step")[0] == 0
    assert not started
    device = "cpu, x86_64, openblas BLAS"
    monkeypatch.setattr(command, "load", lambda *a, **k: replay.load(*a, **k)._replace(device=device))
    out = call(capsys, bundle, "--step", "users_step:step")[1]
    assert started
    assert "changed since the recording: device: cpu, x86_64, openblas BLAS when recorded" in out


def test_a_damaged_bundle_is_told_by_the_exit_code(capsys, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "step_00000000")
    file = copy / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, out, err = call(capsys, str(copy), "--step", "users_step:step")
    assert (code, out) == (1, "")
    assert err.startswith("replay.load: ")
    assert "is damaged" in err


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("users_step", "--step ... module:function, got 'users_step'"),
        (":step", "--step ... module:function, got ':step'"),
        ("no_such_module:step", "importing no_such_module failed (ModuleNotFoundError"),
        ("users_step:stp", "users_step ... no stp"),
        ("users_step:number", "number ... step(state, batch)"),
        ("users_step:loss_fn", "loss_fn ... step(state, batch), ... function without arguments"),
        ("users_step:Counted", "Counted ... step(state, batch)"),
        ("users_step:counting", "counting() ... step(state, batch), got GradientTransform"),
        ("users_step:nothing", "nothing() ... step(state, batch), got NoneType"),
        ("users_step:fails", "fails() failed (KeyError: 'no data')"),
        (
            "users_step:foreign",
            "step cannot ... state and batch",
        ),
        ("json:loads", "loads ... step(state, batch)"),
    ],
)
def test_what_is_no_step_is_refused_in_a_sentence(capsys, bundle, step, message):
    code, out, err = call(capsys, bundle, "--step", step)
    assert (code, out) == (2, "")
    assert err.startswith("replay")
    assert re.search(parts(message), err)


def test_a_namedtuple_that_the_module_does_not_name_is_refused(capsys, bundle, tmp_path, monkeypatch):
    (tmp_path / "bare_step.py").write_text("from users_step import step\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = call(capsys, bundle, "--step", "bare_step:step")
    assert code == 2
    assert re.search(parts("--step ... NamedTuple ... Counted(calls)"), err)


def test_directories_that_are_no_bundle_are_refused(capsys, bundle, place):
    code, _, err = call(capsys, str(place / "bundles"), "--step", "users_step:step")
    assert code == 2
    assert "holds bundles:" in err
    code, _, err = call(capsys, str(place / "nowhere"), "--step", "users_step:step")
    assert code == 2
    assert "no bundle" in err


def test_without_rich_one_sentence_says_what_to_install(capsys, bundle, monkeypatch):
    monkeypatch.delitem(sys.modules, "purestep.cli.core.tables", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    code, out, err = call(capsys, bundle, "--step", "users_step:step")
    assert (code, out) == (2, "")
    assert err.startswith("replay: rich")


def test_both_commands_are_listed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["purestep"])
    assert __main__.main() == 0
    out = capsys.readouterr().out
    assert "  inspect   " in out
    assert "  replay    " in out
