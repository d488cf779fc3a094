"""The command `inspect`: it shows, verifies and compares everything stored, and survives damaged input."""

import json
import os
import random
import re
import socket
import subprocess
import sys

import mlx.core as mx
import pytest

import purestep as ps
from purestep import __main__
from purestep._checkpoint.format.header import FORMAT, seal
from purestep._replay import bundle
from purestep.checkpoint import to_bytes
from purestep.cli import inspect
from tests.refusals import parts

TRANSFORM = ps.optimizers.adam(0.1)
STATE = ps.TrainState.create(
    {"layer": {"weight": mx.arange(6, dtype=mx.float32).reshape(2, 3), "half": mx.ones(4, mx.bfloat16)}},
    TRANSFORM,
)
LATER = STATE.replace(
    step=mx.array(200, mx.int32), params=ps.tree.map(lambda p: p + mx.ones_like(p), STATE.params)
)


@pytest.fixture
def run(tmp_path):
    """A run of two checkpoints."""
    with ps.checkpoint.Checkpointer(tmp_path / "run", shard_bytes=30) as checkpointer:
        checkpointer.save(STATE, step=100, metrics={"loss": 0.5, "worst": float("inf")})
        checkpointer.save(LATER, step=200, metrics={"loss": 0.25}, metadata={"epoch": 3})
    return tmp_path / "run"


def call(capsys, *arguments):
    """Run the command; return its exit status, stdout and stderr."""
    code = inspect.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return code, said.out, said.err


def answer(capsys, *arguments, code=0):
    """Run the command with --json; return the parsed output."""
    got, out, err = call(capsys, *arguments, "--json")
    assert (got, err) == (code, "")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def by_path(said):
    return {entry["path"]: entry for entry in said["arrays"]}


def test_a_run_is_listed_and_its_newest_checkpoint_shown(capsys, run):
    said = answer(capsys, run)
    listed = [(checkpoint["step"], checkpoint["metrics"]) for checkpoint in said["run"]["checkpoints"]]
    assert listed == [(100, {"loss": 0.5, "worst": "inf"}), (200, {"loss": 0.25})]
    assert (said["run"]["writer"], said["run"]["temporaries"], said["problems"]) == (None, [], [])
    assert said["record"]["step"] == 200
    assert said["record"]["metadata"] == {"epoch": 3}
    entries = by_path(said)
    assert list(entries) == ps.tree.paths(LATER)
    assert entries["params.layer.weight"] == {
        "path": "params.layer.weight",
        "dtype": "float32",
        "shape": [2, 3],
        "bytes": 24,
        "norm": pytest.approx(91**0.5),
        "status": "verified",
    }
    assert entries["params.layer.half"]["norm"] == 4.0
    assert entries["step"]["norm"] is None
    code, out, _ = call(capsys, run)
    assert code == 0
    for text in ("params.layer.weight", "2x3", "bfloat16", "0-d", "verified", "loss 0.25", "{'epoch': 3}"):
        assert text in out


def test_a_step_and_some_leaves_are_chosen(capsys, run):
    said = answer(capsys, run, "--step", "100", "--leaves", "params.*")
    assert said["record"]["step"] == 100
    assert list(by_path(said)) == ["params.layer.weight", "params.layer.half"]
    assert answer(capsys, run / "step_00000100")["run"] is None


def test_every_kind_of_file_is_shown(capsys, tmp_path):
    ps.checkpoint.save(tmp_path / "whole.safetensors", STATE)
    ps.checkpoint.save(tmp_path / "parts.safetensors", STATE, shard_bytes=30)
    (tmp_path / "packed").write_bytes(to_bytes(STATE))
    kinds = {
        "whole.safetensors": "safetensors",
        "parts.safetensors.index.json": "safetensors in 7 files",
        "packed": "msgpack",
    }
    for name, kind in kinds.items():
        said = answer(capsys, tmp_path / name)
        assert said["kind"] == kind
        assert {entry["status"] for entry in said["arrays"]} == {"verified"}
        assert list(by_path(said)) == ps.tree.paths(STATE)


def test_files_of_others_are_shown_without_checksums(capsys, tmp_path):
    mx.save_safetensors(str(tmp_path / "m-1.safetensors"), {"a": mx.ones(3), "b.c": mx.array([mx.nan])})
    mx.save_safetensors(str(tmp_path / "m-2.safetensors"), {"d": mx.ones((0, 2))})
    said = answer(capsys, tmp_path / "m-1.safetensors")
    assert said["kind"] == "safetensors, not purestep's"
    assert {entry["status"] for entry in said["arrays"]} == {"no checksum"}
    assert by_path(said)["b.c"]["norm"] == "nan"
    index = tmp_path / "m.safetensors.index.json"
    held = {"a": "m-1.safetensors", "b.c": "m-1.safetensors", "d": "m-2.safetensors"}
    index.write_text(json.dumps({"weight_map": held}))
    assert sorted(by_path(answer(capsys, index))) == ["a", "b.c", "d"]
    index.write_text(json.dumps({"weight_map": {**held, "e": "m-2.safetensors", "f": "m-3.safetensors"}}))
    assert len(answer(capsys, index, code=1)["problems"]) == 3


def test_the_difference_of_two(capsys, run, tmp_path):
    said = answer(capsys, run, "--step", "100", "--diff", run / "step_00000200", code=1)
    assert said["verdict"] == "different"
    differ = {found["path"]: found for found in said["differ"]}
    assert list(differ) == ["params.layer.weight", "params.layer.half", "step"]
    assert differ["params.layer.half"]["max_abs"] == 1.0
    assert differ["params.layer.half"]["relative"] == 0.5
    assert differ["step"]["ulps"] is None
    assert said["same_bits"] == len(ps.tree.leaves(STATE)) - 3
    other = {"params": {"layer": {"weight": mx.ones((3, 2)), "half": mx.ones(4)}}, "more": mx.ones(1)}
    ps.checkpoint.save(tmp_path / "other.safetensors", other)
    said = answer(capsys, run, "--diff", tmp_path / "other.safetensors", code=1)
    assert said["reshaped"] == [{"path": "params.layer.weight", "first": [2, 3], "second": [3, 2]}]
    assert said["retyped"] == [{"path": "params.layer.half", "first": "bfloat16", "second": "float32"}]
    assert said["only_in_second"] == ["more"]
    assert "opt_state.0.count" in said["only_in_first"]
    code, out, _ = call(capsys, run, "--diff", tmp_path / "other.safetensors")
    assert code == 1
    assert out.endswith("\ndifferent\n")
    for text in ("reshaped: (2, 3), (3, 2)", "only in the second", "retyped: bfloat16, float32"):
        assert text in out
    code, out, _ = call(capsys, run, "--diff", run)
    assert (code, out.splitlines()[-1]) == (0, "identical")
    assert f"identical bit for bit: {len(ps.tree.leaves(STATE))}, different: 0" in out


def test_the_difference_is_told_in_the_order_of_typing(capsys, run):
    one, two = run / "step_00000100", run / "step_00000200"
    for arguments in (("--diff", one, two), (one, "--diff", two)):
        said = answer(capsys, *arguments, code=1)
        assert (said["first"], said["second"]) == (str(one), str(two))


@pytest.mark.parametrize("damaged", [100, 200])
def test_a_difference_with_damage_is_never_called_identical(capsys, run, damaged):
    (run / f"step_00000{damaged}" / "manifest.json").write_text("{")
    code, out, _ = call(capsys, run, "--diff", run)
    assert (code, out.splitlines()[-1]) == ((2, "damaged") if damaged == 200 else (0, "identical"))


@pytest.mark.parametrize("command", ["inspect", "replay", "demo"])
def test_every_exit_status_is_in_the_help(capsys, monkeypatch, command):
    monkeypatch.setattr(sys, "argv", ["purestep", command, "--help"])
    assert __main__.main() == 0
    said = capsys.readouterr().out
    assert "Exit status: 0" in said
    for status in ("1", "2", "130", "141", "70"):
        assert re.search(rf"\b{status}\s", said)


def test_a_directory_of_files_is_shown_like_a_run(capsys, tmp_path):
    place = tmp_path / "runs"
    place.mkdir()
    (place / "run.json").write_text("{}")
    ps.checkpoint.save(place / "reference.safetensors", STATE)
    ps.checkpoint.save(place / "policy.safetensors", LATER, shard_bytes=30)
    for number, name in enumerate(["reference.safetensors", "policy.safetensors.index.json"]):
        os.utime(place / name, (1000 + number, 1000 + number))
    said = answer(capsys, place)
    assert [file["name"] for file in said["files"]] == [
        "reference.safetensors",
        "policy.safetensors.index.json",
    ]
    assert said["source"].endswith("policy.safetensors.index.json")
    assert list(by_path(said)) == ps.tree.paths(LATER)
    assert call(capsys, place)[1].startswith("2 files\n")
    assert answer(capsys, place, "--diff", place)["verdict"] == "identical"
    (place / "old.safetensors").write_text("no arrays")
    os.utime(place / "old.safetensors", (900, 900))
    assert answer(capsys, place, "--diff", place)["verdict"] == "identical"
    assert len(answer(capsys, place, code=1)["problems"]) == 1
    (place / "policy.safetensors.index.json").write_text("{")
    assert answer(capsys, place, code=1)["problems"]
    assert answer(capsys, place, "--diff", place, code=2)["verdict"] == "damaged"
    code, _, err = call(capsys, place, "--step", "3")
    assert code == 2
    assert "--step needs a directory of checkpoints" in err


def test_a_writer_and_what_a_dead_one_left_are_named(capsys, run):
    left = run / f".step_00000300.{socket.gethostname()}.4242.0123abcdtmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"x" * 1500)
    with ps.checkpoint.Checkpointer(run / "busy") as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.wait()
        said = answer(capsys, run / "busy")
        assert said["run"]["writer"] == f"pid {os.getpid()} on {socket.gethostname()}"
    assert answer(capsys, run / "busy")["run"]["writer"] is None
    said = answer(capsys, run)
    assert said["run"]["temporaries"] == [
        {"name": left.name, "owner": f"pid 4242 on {socket.gethostname()}", "bytes": 1500}
    ]
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    (run / ".lock").write_text(json.dumps({"pid": int(process.stdout), "host": socket.gethostname()}))
    code, out, _ = call(capsys, run)
    assert code == 0
    assert "which is no longer alive" in out
    assert "left behind by pid 4242" in out
    for nonsense in ("{", "[]", '{"pid": {}, "host": 3}'):
        (run / ".lock").write_text(nonsense)
        assert answer(capsys, run)["run"]["writer"] is None


def test_damage_is_listed_array_by_array_and_the_rest_shown(capsys, run):
    file = next((run / "step_00000200").glob("model-00001*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    said = answer(capsys, run, code=1)
    statuses = {entry["path"]: entry["status"] for entry in said["arrays"]}
    assert [path for path, status in statuses.items() if status == "damaged"] == ["params.layer.weight"]
    assert "checksum" in said["problems"][0]
    assert call(capsys, run)[0] == 1
    assert answer(capsys, run, "--diff", run, code=2)["problems"]
    assert answer(capsys, run, "--step", "100", code=0)["problems"] == []


def test_a_damaged_manifest_is_reported_and_the_newest_sound_checkpoint_shown(capsys, run):
    manifest = run / "step_00000200" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-30])
    said = answer(capsys, run, code=1)
    assert said["record"]["step"] == 100
    assert "header is cut" in said["problems"][0]
    assert answer(capsys, run / "step_00000200", code=1)["arrays"] == []
    manifest.unlink()
    assert "manifest.json is missing" in answer(capsys, run, "--step", "200", code=1)["problems"][0]
    (run / "step_00000100" / "manifest.json").unlink()
    assert answer(capsys, run, code=1)["source"] is None
    said = answer(capsys, run, "--diff", run, code=2)
    assert (said["verdict"], len(said["problems"])) == ("damaged", 4)


def test_another_version_says_what_to_do(capsys, run):
    manifest = run / "step_00000200" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format":{FORMAT}', '"format":99', 1))
    assert "upgrade" in answer(capsys, run / "step_00000200", code=1)["problems"][0]


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_makes_it_stumble(capsys, tmp_path, seed):
    ps.checkpoint.save(tmp_path / "s.safetensors", STATE)
    ps.checkpoint.save(tmp_path / "d.safetensors", STATE, shard_bytes=60)
    (tmp_path / "p").write_bytes(to_bytes(STATE))
    mx.save_safetensors(str(tmp_path / "foreign.safetensors"), {"a": mx.ones(3), "b": mx.arange(4)})
    generator = random.Random(seed)
    for name in ("s.safetensors", "d.safetensors.index.json", "p", "foreign.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(12):
            data = bytearray(whole)
            if generator.random() < 0.3:
                del data[generator.randrange(len(data)) :]
            else:
                data[generator.randrange(min(len(data), 400))] ^= 1 << generator.randrange(8)
            (tmp_path / name).write_bytes(data)
            code, _, err = call(capsys, tmp_path / name, "--json")
            # Names and values of a foreign file may change unseen: it has no checksums.
            assert not err
            assert code == 1 or name == "foreign.safetensors", bytes(data)


def test_hostile_specs_are_damage(capsys, run):
    manifest = run / "step_00000200" / "manifest.json"
    content = json.loads(manifest.read_text())["content"]
    place = content["tree"][2][0][1][1][0][1][1][0][1]
    assert place == ["array", "float32", [2, 3]]
    for dtype, shape in (
        ("float8", [2, 3]),
        ("float32", ["2", 3]),
        ("float32", [-2, -3]),
        ("float32", [True]),
    ):
        place[1:] = [dtype, shape]
        manifest.write_text(seal(content))
        said = answer(capsys, run / "step_00000200", code=1)
        assert "unknown dtype" in said["problems"][0]
    place[1:] = ["float32", [1 << 40, 3]]
    manifest.write_text(seal(content))
    said = answer(capsys, run / "step_00000200", code=1)
    assert by_path(said)["params.layer.weight"]["status"] == "damaged"


def test_a_replay_bundle_is_shown_as_one(capsys, tmp_path):
    path = bundle.write(tmp_path, 4, STATE, {"x": mx.ones(2)}, {"loss": mx.array(mx.nan)}, STATE, ())
    said = answer(capsys, path)
    assert said["kind"] == "replay bundle"
    assert by_path(said)["metrics.loss"]["norm"] == "nan"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "path must exist"),
        (["run", "--step", "3"], "run ... no step 3; ... 100, 200"),
        (["run/step_00000100", "--step", "100"], "--step ... directory of a run"),
        (["run", "--leaves", "zz*"], "--leaves 'zz*' ... no array"),
        (["run", "--leaves", "zz*", "--diff", "run"], "--leaves 'zz*' ... no array ... either"),
        (["run", "--diff", "nowhere"], "path must exist"),
        (["."], "no checkpoint in"),
        (["/dev/null"], "/dev/null ... directory ... file"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(capsys, run, monkeypatch, arguments, message):
    monkeypatch.chdir(run.parent)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("inspect: ")
    assert re.search(parts(message), err)


def test_without_rich_one_sentence_says_what_to_install_and_json_goes_on(capsys, run, monkeypatch):
    monkeypatch.delitem(sys.modules, "purestep.cli.core.tables", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    code, out, err = call(capsys, run)
    assert (code, out) == (2, "")
    assert re.search(r"rich.*pip install 'purestep\[cli\]'.*--json", err)
    assert answer(capsys, run)["problems"] == []
