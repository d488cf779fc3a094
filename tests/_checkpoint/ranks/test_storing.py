"""Checkpoints that ranks write together: restored in any number of processes, verified, and refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import purestep as ps
from purestep import checkpoint
from purestep._checkpoint.format import header
from purestep._checkpoint.ranks.division import division
from purestep._core.packing import part as part_of
from purestep._core.packing import shard_class
from purestep.cli import inspect
from purestep.testing import same_bits
from tests._parallel.launching import launched
from tests._parallel.programs import storing

PROGRAM = Path(storing.__file__)
STEP = 3


def stored(count, *works):
    """Return the digest that all ranks agree on, of states restored from paths and saved to others."""
    works = [[str(before), str(after), options] for before, after, options in works]
    printed = [found for out in launched(PROGRAM, count, [json.dumps(works)]) for found in json.loads(out)]
    digests = {digest for state, again, _ in printed for digest in (state, again)}
    assert [ranks for *_, ranks in printed] == [count] * count * len(works)
    assert len(digests) == 1
    return digests.pop()


def plain_template():
    return ps.TrainState.create(storing.PARAMS, storing.TRANSFORM)


def packed_template():
    return ps.TrainState.create(ps.packed(storing.PARAMS), storing.TRANSFORM)


@pytest.fixture(scope="module")
def by_four(tmp_path_factory):
    """Return the directory of a run of four ranks, and the digest of its state."""
    root = tmp_path_factory.mktemp("four") / "run"
    return root, stored(4, ("none", root, {}))


def restored(root, like=None):
    with checkpoint.Checkpointer(root) as checkpointer:
        return checkpointer.restore(STEP, like=like).state


def test_4_ranks_1_2_and_3_have_the_same_bits(by_four, tmp_path):
    root, digest = by_four
    alone = restored(root, packed_template())
    assert storing.digest(alone) == digest
    with checkpoint.Checkpointer(tmp_path / "one") as checkpointer:
        checkpointer.save(alone, step=STEP)
    checkpoint.save(tmp_path / "one.safetensors", ps.unpacked(alone))
    assert stored(3, (tmp_path / "one", tmp_path / "three", {})) == digest
    again = tmp_path / "one.safetensors", tmp_path / "again", {}
    assert stored(2, (root, tmp_path / "two", {"shard_bytes": 1500}), again) == digest
    for made in ("two", "three", "again"):
        assert storing.digest(restored(tmp_path / made, plain_template())) == digest


def test_a_process_restores_it_into_plain_and_packed_states(by_four):
    root, digest = by_four
    plain, packed, free = (restored(root, like) for like in (plain_template(), packed_template(), None))
    assert storing.digest(plain) == storing.digest(packed) == storing.digest(free) == digest
    assert ps.tree.spec(plain) == ps.tree.spec(plain_template())


def test_the_files_have_the_models_own_names(by_four):
    root, _ = by_four
    path = root / "step_00000003"
    model: Any = mx.load(str(path / "model.safetensors"))
    assert model.keys() == {"big", "w", "b", "one", "half"}
    assert not [entry.name for entry in path.iterdir() if entry.name.startswith(("rank", "."))]
    parts: list[Any] = [
        mx.load(str(path / f"state-0000{number}-of-00004.safetensors")) for number in range(1, 5)
    ]
    sizes = [sum(array.nbytes for array in part.values()) for part in parts]
    assert max(sizes[1:]) < sum(sizes) / 3.5
    index = json.loads((path / "state.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == {key for part in parts for key in part}
    weights = checkpoint.load_weights(path / "model.safetensors", like=storing.PARAMS)
    assert same_bits(weights, restored(root, plain_template()).params)


def test_it_can_be_verified_inspected_and_listed(by_four, capsys):
    root, _ = by_four
    with checkpoint.Checkpointer(root) as checkpointer:
        assert checkpointer.verify() == {STEP: [], STEP + 1: []}
        record, _ = checkpointer.list()
        assert (record.step, record.metadata) == (STEP, {"ranks": 4})
    assert inspect.main([str(root)]) == 0
    assert inspect.main([str(root / "step_00000003"), "--leaves", "*average.big"]) == 0
    assert "opt_state.2.average.big  float32  7x53" in capsys.readouterr().out


@pytest.fixture
def copied(by_four, tmp_path):
    """Return a copy of the run of four ranks, and of its checkpoint."""
    root = tmp_path / "run"
    shutil.copytree(by_four[0], root)
    return root, root / "step_00000003"


def part(path, number):
    return path / f"state-0000{number}-of-00004.safetensors"


def swap(path):
    one, two, aside = part(path, 2), part(path, 3), path / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def cut(path):
    part(path, 3).write_bytes(part(path, 3).read_bytes()[:-40])


def change(path):
    data = bytearray(part(path, 4).read_bytes())
    data[-1] ^= 1
    part(path, 4).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "names", "reason"),
    [
        (lambda path: part(path, 2).unlink(), [2], "is missing"),
        (cut, [3], "is damaged: 3560 bytes, 3600 were written"),
        (swap, [2, 3], "is damaged: it is not as it was written"),
        (change, [4], "its bytes do not have the checksum written"),
    ],
)
def test_a_part_that_is_missing_cut_swapped_or_changed_is_refused_by_name(copied, damage, names, reason):
    root, path = copied
    damage(path)
    with checkpoint.Checkpointer(root) as checkpointer:
        (problems,) = checkpointer.verify(STEP).values()
        for like in (plain_template(), None):
            with pytest.raises(checkpoint.CorruptError, match=reason) as refused:
                checkpointer.restore(STEP, like=like)
    for number in names:
        assert any(part(path, number).name in line and reason in line for line in problems)
    assert any(part(path, number).name in str(refused.value) for number in names)


def test_a_part_of_another_save_is_refused(copied):
    """Its header is the same: the same arrays in the same place."""
    root, path = copied
    foreign = part(root / "step_00000004", 2)
    assert foreign.stat().st_size == part(path, 2).stat().st_size
    shutil.copy(foreign, part(path, 2))
    with (
        checkpoint.Checkpointer(root) as checkpointer,
        pytest.raises(checkpoint.CorruptError, match=r"in .*state-00002-of-00004.*is damaged: its bytes"),
    ):
        checkpointer.restore(STEP, like=plain_template())


def test_memory_of_a_rank_is_its_state_and_a_vector(tmp_path):
    """The optimizer state is twice the parameters; a rank of four holds a quarter."""
    program = PROGRAM.with_name("measuring.py")
    for out in launched(program, 4, [tmp_path]):
        parameters, own, saving, restoring = json.loads(out)
        assert own < 1.6 * parameters
        assert saving < 0.05 * parameters  # the bytes are read where they are
        assert restoring < own + 1.1 * parameters  # the result, and one vector: that of the parameters


def forged(path, change):
    """Change the pieces in a manifest, and seal it again."""
    manifest = path / "manifest.json"
    content = json.loads(manifest.read_text())["content"]
    change(content["pieces"])
    manifest.write_text(header.seal(content))


def longer(pieces):
    next(iter(pieces.values()))[0][3] = 10**9


def renamed(pieces):
    next(iter(pieces.values()))[0][1] += "x"


def unknown(pieces):
    pieces["params.none"] = [["state-00001-of-00004.safetensors", "a", "crc32:0", 1]]


def dropped(pieces):
    del next(iter(pieces.values()))[0]


@pytest.mark.parametrize("change", [longer, renamed, unknown, dropped])
def test_a_manifest_whose_pieces_do_not_make_up_the_arrays_is_refused(copied, change):
    root, path = copied
    forged(path, change)
    with (
        checkpoint.Checkpointer(root) as checkpointer,
        pytest.raises(checkpoint.CorruptError, match="is damaged"),
    ):
        checkpointer.restore(STEP)


def test_only_arrays_in_pieces_need_the_later_format(by_four, tmp_path):
    root, _ = by_four
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(plain_template())
    texts = [
        (path / "manifest.json").read_text()[:11]
        for path in (tmp_path / "step_00000000", root / "step_00000003")
    ]
    assert texts == ['{"format":2', '{"format":3']
    assert "pieces" in (root / "step_00000003" / "manifest.json").read_text()


def test_parts_for_another_number_of_ranks_are_refused(tmp_path):
    vectors = ps.packed(storing.PARAMS)
    parts = shard_class(type(vectors), 4)(*(part_of(vector, 1, 4) for vector in vectors))
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save({"m": vectors}, step=1)
        with pytest.raises(ValueError, match="like has the parts of 4 ranks in m, got a group of 1"):
            checkpointer.restore(like={"m": parts})
        whole = (
            "state must be whole, got one of 4 parts in m: call save of a ps.checkpoint.Checkpointer on every"
        )
        for save in (
            lambda: checkpointer.save({"m": parts}, step=2),
            lambda: checkpoint.save(tmp_path / "m.safetensors", {"m": parts}),
        ):
            with pytest.raises(ValueError, match=whole):
                save()


def test_a_load_names_what_reads_a_file_of_a_checkpoint(by_four, tmp_path):
    path = by_four[0] / "step_00000003"
    with pytest.raises(FileNotFoundError, match="no file at .*: restore of a Checkpointer on the directory"):
        checkpoint.load(path)
    with pytest.raises(ValueError, match=r"index.json is a part of a checkpoint \(restore of a Checkpointer"):
        checkpoint.load(path / "state.safetensors")
    vectors = ps.packed({"w": mx.ones(3)})
    like = {"m": shard_class(type(vectors), 1)(*vectors)}
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"m.w": mx.ones(3)})
    with pytest.raises(ValueError, match=r"purestep did not write: read it with checkpoint.load_weights\("):
        checkpoint.load(tmp_path / "a.safetensors", like=like)
    with pytest.raises(TypeError, match="load: group must be a group of mx.distributed.init, got a str"):
        checkpoint.load(tmp_path / "a.safetensors", group="all")  # type: ignore[call-overload]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_parts_of_ranks_make_up_every_array_once(count):
    """Sizes that no number divides, an empty array, and fewer elements than ranks."""
    params = {
        "a": mx.arange(7.0),
        "b": mx.zeros((0, 3)),
        "c": mx.arange(2, dtype=mx.bfloat16),
        "d": mx.array(1.0),
    }
    vectors = ps.packed(params)
    kind = shard_class(type(vectors), count)
    seen: dict[str, list[Any]] = {}
    for rank in range(count):
        own, sources = division({"m": kind(*(part_of(vector, rank, count) for vector in vectors))}, count)
        for entry in own[rank]:
            size = math.prod(entry.shape)
            values = sources[entry.source][entry.start : entry.start + size].tolist()
            seen.setdefault(entry.path, []).append((entry.number, values))
    for name, array in params.items():
        found = [value for _, values in sorted(seen[f"m.{name}"]) for value in values]
        assert found == array.reshape(-1).tolist()


def test_parts_accept_the_differences_that_the_options_name(tmp_path):
    """A part of a group of one is a whole vector."""
    checkpoint.save(tmp_path / "a.safetensors", {"m": {"old": mx.arange(4.0), "c": mx.array([1.5])}})
    vectors = ps.packed({"a": mx.zeros((2, 2)), "b": mx.ones(3), "c": mx.zeros(1, mx.bfloat16)})
    like = {"m": shard_class(type(vectors), 1)(*vectors)}
    with pytest.raises(ValueError, match="m.b is in like, not in the file"):
        checkpoint.load(tmp_path / "a.safetensors", like=like)
    with pytest.raises(ValueError, match="m.c has dtype float32 in the file, bfloat16 in like"):
        checkpoint.load(tmp_path / "a.safetensors", like=like)
    checkpoint.save(tmp_path / "a.safetensors", {"m": {"old": mx.ones((2, 2)), "c": mx.array([1.5])}})
    with pytest.warns(checkpoint.RestoreWarning, match="m.c was cast from float32 to bfloat16"):
        found = checkpoint.load(
            tmp_path / "a.safetensors", like=like, cast=True, partial=["m.b"], rename={"m.old": "m.a"}
        )
    assert type(found["m"]) is type(like["m"])
    whole = type(vectors)(*found["m"])
    expected = {"a": mx.ones((2, 2)), "b": mx.ones(3), "c": mx.array([1.5], mx.bfloat16)}
    assert same_bits(ps.unpacked(whole), expected)
