"""Bundles on disk: whole, typed, and refused when they are not what was written."""

import json
import os
import shutil
import sys
from typing import NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import replay
from purestep._replay import bundle
from tests.trees import same_bits


class OwnState(NamedTuple):
    total: mx.array
    nested: tuple


class Other(NamedTuple):
    total: mx.array


class Twin(NamedTuple):
    total: mx.array
    nested: tuple


Other.__name__ = Twin.__name__ = "OwnState"


class Impostor(NamedTuple):
    total: mx.array


STATE = {"own": OwnState(mx.arange(3), (mx.ones((2, 2), mx.bfloat16), None, {})), "list": [mx.array(1.5)]}


@pytest.fixture
def path(tmp_path):
    return bundle.write(
        tmp_path, 5, STATE, {"x": mx.ones(3)}, {"loss": mx.array(mx.nan)}, STATE, ("metrics.loss",)
    )


def test_a_bundle_comes_back_as_it_was(path):
    loaded = replay.load(path, types=[OwnState])
    assert same_bits(loaded.state, STATE)
    assert type(loaded.state["own"]) is OwnState
    assert ps.tree.spec(loaded.state) == ps.tree.spec(STATE)
    assert loaded.step == 5
    assert loaded.reason == ("metrics.loss",)
    assert loaded.device == bundle.device()
    assert set(loaded.versions) == {"python", "purestep", "mlx"}
    assert replay.load(os.path.relpath(path), types=[OwnState]).step == 5


def test_a_namedtuple_without_a_type_is_refused_by_name_and_fields(path):
    wanted = r"^replay\.load: types .* NamedTuple .*: OwnState\(total, nested\)$"
    for types in ([], [Impostor], [int, OwnState.__base__]):
        with pytest.raises(ValueError, match=wanted):
            replay.load(path, types=types)
    with pytest.raises(ValueError, match=wanted):
        replay.load(path, types=[Other])  # of the name, with other fields
    assert type(replay.load(path, types=[Other, OwnState]).state["own"]) is OwnState
    with pytest.raises(ValueError, match=r"replay.load: .*OwnState\(total, nested\).* 2$"):
        replay.load(path, types=[OwnState, Twin])


def test_nothing_that_a_file_names_is_imported(path):
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"^replay\.load: types .*OwnState\(total, nested\)$"):
        replay.load(path)
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", ["manifest.json", "state.safetensors"])
def test_every_changed_byte_is_noticed(path, name):
    file = path / name
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=f"^replay.load: .*{name} "):
            replay.load(path, types=[OwnState])
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ps.checkpoint.CorruptError, match=f"^replay.load: {file} .*damaged"):
        replay.load(path, types=[OwnState])
    file.unlink()
    with pytest.raises(ps.checkpoint.CorruptError, match=f"^replay.load: {file} .*missing"):
        replay.load(path, types=[OwnState])


def test_what_is_no_bundle_is_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^replay\.load: no bundle .*nowhere"):
        replay.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^replay\.load: .*holds bundles: .*step_00000005$"):
        replay.load(tmp_path)
    with pytest.raises(
        ps.checkpoint.CorruptError, match=f"^replay.load: {tmp_path.parent}/manifest.json .*missing$"
    ):
        replay.load(tmp_path.parent)
    with pytest.raises(ps.checkpoint.CorruptError, match=r"^replay\.load: .*manifest.json .*is a file"):
        replay.load(path / "manifest.json")
    with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save({"w": mx.ones(1)}, step=3)
    with pytest.raises(ValueError, match=r"^replay\.load: .*is a checkpoint:"):
        replay.load(tmp_path / "run" / "step_00000003")
    shutil.move(path, tmp_path / "step_00000006")
    with pytest.raises(
        ps.checkpoint.CorruptError, match=r"^replay\.load: .*step_00000006 .*step 5: .*renamed"
    ):
        replay.load(tmp_path / "step_00000006")


@pytest.mark.parametrize(
    "facts",
    [
        3,
        [],
        {},
        {"reason": 3},
        {"reason": [], "device": "x", "after": [1]},
        {"reason": []},
        *(
            {"reason": [], "compiled": False, "device": "cpu", "after": {}, name: value}
            for name, value in {
                "reason": "loss",
                "compiled": 1,
                "device": None,
                "after": {"w": 3},
            }.items()
        ),
        {"reason": [["loss"]], "compiled": False, "device": "cpu", "after": {}},
    ],
)
def test_a_sealed_manifest_that_makes_no_sense_is_refused(path, facts):
    from purestep._checkpoint.format import header

    manifest = path / "manifest.json"
    content = json.loads(manifest.read_text())["content"]
    content["metadata"] = {"replay": facts}
    manifest.write_text(header.seal(json.loads(json.dumps(content))))
    with pytest.raises(ps.checkpoint.CorruptError, match="replay.load: .*is damaged: .*bundle$"):
        replay.load(path, types=[OwnState])


@pytest.mark.parametrize("types", [3, None, "OwnState"])
def test_types_that_are_no_list_are_refused(path, types):
    with pytest.raises(TypeError, match=r"^replay\.load: types .* list of NamedTuple types, got "):
        replay.load(path, types=types)


def test_a_checkpoint_with_much_metadata_is_no_damaged_bundle(tmp_path):
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save({"w": mx.ones(1)}, step=3, metadata={"losses": [0.5] * 20_000})
    with pytest.raises(ValueError, match=r"^replay\.load: .*is a checkpoint:"):
        replay.load(tmp_path / "step_00000003")


def test_a_failed_write_leaves_nothing(path, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(bundle.directory, "write", full)
    with pytest.raises(OSError, match="no space"):
        bundle.write(tmp_path, 5, STATE, {}, {}, STATE, ())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert replay.load(path, types=[OwnState]).step == 5
