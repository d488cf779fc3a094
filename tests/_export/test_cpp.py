"""The C++ program of the guide trains from an exported step."""

import re
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

import purestep as ps
from tests import documents
from tests._export.examples import perceptron

GUIDE = documents.ROOT / ".github/docs/export.md"
MLX = Path(mx.__file__ or "").parent
STEPS = 5


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    if not (MLX / "include/mlx/mlx.h").is_file() or not list((MLX / "lib").glob("libmlx.*")):
        pytest.skip("this MLX has no headers or library")
    directory = tmp_path_factory.mktemp("cpp")
    (source,) = re.findall(r"```cpp\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (directory / "train.cpp").write_text(source)
    found = [f"-I{MLX / 'include'}", f"-L{MLX / 'lib'}", "-lmlx", f"-Wl,-rpath,{MLX / 'lib'}"]
    command = ["g++", "-std=c++20", "-Wall", "train.cpp", *found, "-o", "train"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "train"


@pytest.mark.parametrize("pack", [False, True])
def test_metrics_and_state_equal_those_of_python(program, tmp_path, pack):
    step, state, batch = perceptron(pack=pack)
    ps.export(step, state, batch, tmp_path / "step")
    if pack:
        mx.save_safetensors(str(tmp_path / "state.safetensors"), dict(ps.tree.items({"state": state})))
    else:
        ps.checkpoint.save(tmp_path / "state.safetensors", {"state": state})
    ps.checkpoint.save(tmp_path / "batch.safetensors", {"batch": batch})
    files = ["step", "state.safetensors", "batch.safetensors", str(STEPS), "new.safetensors"]
    done = subprocess.run([program, *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled, want = ps.compiled(step), state
    for line in done.stdout.splitlines():
        want, metrics = compiled(want, batch)
        words = line.split()
        printed = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        assert printed == {name: pytest.approx(value.item(), rel=1e-8) for name, value in metrics.items()}
    assert want.step.item() == STEPS
    new = mx.load(str(tmp_path / "new.safetensors"))
    for path, leaf in ps.tree.items({"state": want}):
        assert mx.array_equal(new[path], leaf), path
