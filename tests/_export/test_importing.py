"""Imported steps: the description beside the file, and calls that do not fit."""

import json
import shutil
from importlib.metadata import version

import mlx.core as mx
import pytest

import purestep as ps
from tests._export.examples import perceptron
from tests.refusals import parts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    step, state, batch = perceptron()
    ps.export(ps.compiled(step), state, batch, directory / "step.mlxfn")
    return directory, state, batch


def copied(files, tmp_path, **changes):
    for file in files[0].iterdir():
        shutil.copy(file, tmp_path)
    sidecar = tmp_path / "step.mlxfn.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))
    return tmp_path / "step.mlxfn"


def test_the_description_lists_inputs_and_outputs_in_the_order_of_the_file(files):
    """MLX's own function, called by position of the outputs, without purestep."""
    directory, state, batch = files
    content = json.loads((directory / "step.mlxfn.json").read_text())
    inputs = {f"state.{path}": leaf for path, leaf in ps.tree.items(state)}
    inputs |= {f"batch.{path}": leaf for path, leaf in ps.tree.items(batch)}
    listed = [(each["name"], each["shape"], f"mlx.core.{each['dtype']}") for each in content["inputs"]]
    assert listed == [(name, list(a.shape), str(a.dtype)) for name, a in sorted(inputs.items())]
    found = mx.import_function(str(directory / "step.mlxfn"))(inputs)
    names = [each["name"] for each in content["outputs"]]
    got = dict(zip(names, found, strict=True))
    new, metrics = ps.import_step(directory / "step.mlxfn")(state, batch)
    assert {f"state.{path}" for path in ps.tree.paths(new)} | {f"metrics.{name}" for name in metrics} == {
        *got
    }
    assert mx.array_equal(got["metrics.loss"], metrics["loss"])
    assert mx.array_equal(got["state.params.layers.0.weight"], new.params["layers"][0]["weight"])
    assert (content["shapes"], content["versions"]["mlx"]) == ("fixed", version("mlx"))


def test_an_imported_step_trains_in_fit(files):
    directory, state, batch = files
    result = ps.fit(ps.import_step(directory / "step.mlxfn"), state, [batch] * 3, steps=3)
    assert result.state.step.item() == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "import_step: ... is not a description that purestep.export wrote"),
        ({"version": 2}, "import_step: ... has format 2, this purestep reads 1"),
        ({"versions": {"mlx": "0.1.0"}}, "import_step: ... was written by MLX 0.1.0"),
        ({"device": "tpu"}, "import_step: ... runs on the tpu"),
        ({"sha256": "0"}, "import_step: ... describes another file than step.mlxfn"),
        ({"state": ["namedtuple"]}, "import_step: ... is damaged"),
        ({"metrics": 3}, "import_step: ... is damaged"),
        ({"metrics": ["dict", [["lose", ["array", "float32", []]]]]}, "import_step: ... is damaged"),
        ({"outputs": []}, "import_step: ... is damaged"),
        ({"evaluation": "no"}, "import_step: ... is damaged"),
        ({"steps": float("inf")}, "import_step: ... is damaged"),
        ({"steps": -1}, "import_step: ... is damaged"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(files, tmp_path, changes, message):
    with pytest.raises(ValueError, match=parts(message)):
        ps.import_step(copied(files, tmp_path, **changes))


def test_a_missing_or_foreign_description_is_refused(files, tmp_path):
    path = copied(files, tmp_path)
    sidecar = tmp_path / "step.mlxfn.json"
    sidecar.write_text("[1, 2")
    with pytest.raises(ValueError, match=parts("import_step: ... is not a description")):
        ps.import_step(path)
    sidecar.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=parts("import_step: ... is not a description")):
        ps.import_step(path)
    sidecar.unlink()
    with pytest.raises(FileNotFoundError, match=r"^import_step: .*step\.mlxfn\.json is missing"):
        ps.import_step(path)


def test_an_imported_step_may_be_mapped_over_members_and_called_again(files):
    """`mx.vmap` changes an imported function in place: the next call would end the process."""
    directory, state, batch = files
    step, original = ps.import_step(directory / "step.mlxfn"), perceptron()[0]
    states = ps.populations.stacked([state.replace(rng=mx.random.key(seed)) for seed in range(3)])
    for _ in range(2):
        for made in (ps.population(step), ps.population(step, chunk=2)):
            got = made(states, batch)[1]["loss"]
            assert mx.allclose(got, ps.population(original)(states, batch)[1]["loss"], rtol=1e-6)
        assert mx.array_equal(step(state, batch)[1]["loss"], ps.compiled(original)(state, batch)[1]["loss"])


def test_a_file_that_changes_while_its_step_is_in_use_is_refused(files, tmp_path):
    path, (_, state, batch) = copied(files, tmp_path), files
    step = ps.import_step(path)
    loss = step(state, batch)[1]["loss"]
    mx.eval(loss)
    path.write_bytes(b"")
    assert mx.array_equal(step(state, batch)[1]["loss"], loss)  # it is compiled
    with pytest.raises(ValueError, match=parts("import_step: ... must stay unchanged")):
        ps.population(step)(ps.populations.stacked([state, state]), batch)


def test_a_gradient_through_an_imported_step_is_refused(tmp_path):
    """MLX writes no `mx.stop_gradient`, so it would be another gradient than that of the step."""

    def step(state, batch):
        return state * mx.stop_gradient(state) + batch, {"loss": state.sum()}

    state, batch = mx.array([1.0, 2.0]), mx.array([3.0, 4.0])
    ps.export(step, state, batch, tmp_path / "step")
    imported = ps.import_step(tmp_path / "step")
    total = lambda state: imported(state, batch)[0].sum()  # noqa: E731
    for call in (
        lambda: mx.grad(total)(state),
        lambda: mx.jvp(total, [state], [state]),
        lambda: mx.grad(lambda s: ps.unrolled(imported, 2)(s, mx.ones((2, 2)))[0].sum())(state),
    ):
        with pytest.raises(ValueError, match=parts("import_step: ... must not be differentiated")):
            call()
    with pytest.raises(ValueError, match=parts("import_step: the operations of step cannot be read again")):
        ps.export(imported, state, batch, tmp_path / "again")


def test_calls_that_do_not_fit_are_refused_with_their_paths(files):
    directory, state, batch = files
    step = ps.import_step(directory / "step.mlxfn")
    with pytest.raises(
        ValueError, match=parts("import_step: batch must fit step.mlxfn ... x has shape (4, 8)")
    ):
        step(state, {"x": batch["x"][:4], "y": batch["y"][:4]})
    with pytest.raises(ValueError, match=parts("import_step: batch ... z is in this call, not in the file")):
        step(state, batch | {"z": batch["y"]})
    narrow = ps.tree.cast(state.params, mx.float16)
    with pytest.raises(
        ValueError, match=parts("import_step: state ... params.layers.0.weight has dtype float16")
    ):
        step(state.replace(params=narrow), batch)
    with pytest.raises(TypeError, match=parts("batch.x is the Python number 3")):
        step(state, {"x": 3, "y": batch["y"]})
    assert step(state, batch)[0].step.item() == 1
