"""The shape of the package: imports point one way, every name has one address, every example runs."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import CodeType

import mlx.core as mx
import pytest

import purestep
from purestep.checkpoint import Moment, Record, Restored
from tests import readme_blocks

PACKAGE = Path(purestep.__file__).parent
ROOT = Path(__file__).parents[1]

# Each imports only from its left.
LAYOUT = (
    "types checks escaping hardware microbatching sums scalars tree mean graph context rng _modules "
    "schedules transforms optimizers losses wrappers adapters state steps parallel checkpoint data metrics "
    "replay loop testing demos cli __main__"
).split()
FOREIGN = {"mlx", "msgpack", "safetensors"}
EXTRAS = {
    "checkpoint": {"xxhash"},
    "testing": {"hypothesis"},
    "demos": {"rich", "matplotlib"},
    "cli": {"rich", "matplotlib"},
}

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(purestep.__path__, "purestep.")
    if not name.endswith("__main__")
)


def source_of(name):
    module = importlib.util.find_spec(name)
    return Path(module.origin)


def imports(path):
    """Yield (module, whether inside a function) for every import of a file."""
    parsed = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(parsed)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "purestep":
                yield from ((f"purestep.{alias.name}", id(node) in inside) for alias in node.names)
            else:
                yield node.module, id(node) in inside


def functions(code):
    """Yield the code of every function that is defined within this code."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from functions(constant)


def test_no_function_within_a_function_calls_itself():
    """It would be a cycle: what it has seen, whole states, stays in memory until Python collects cycles."""
    cyclic = [
        f"{path.name}:{code.co_firstlineno} {code.co_name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for code in functions(compile(path.read_text(), str(path), "exec"))
        if code.co_name in code.co_freevars
    ]
    assert not cyclic


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_up_the_layout_and_stay_within_the_dependencies(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = parts[0]
    for module, inside in imports(path):
        top, _, below = module.partition(".")
        assert not inside, f"{module} is imported inside a function"
        if top == "purestep":
            layer = below.partition(".")[0]
            if own == "__init__" or layer == own:
                continue
            if own == "__main__" and layer == "__version__":
                continue
            assert LAYOUT.index(layer) < LAYOUT.index(own), f"{own} imports {module}"
        else:
            allowed = FOREIGN | EXTRAS.get(own, set())
            assert top in sys.stdlib_module_names or top in allowed, f"{module} is not a dependency"


def test_every_public_name_has_one_address():
    namespaces = [purestep] + [
        importlib.import_module(f"purestep.{info.name}")
        for info in pkgutil.iter_modules(purestep.__path__)
        if info.ispkg and info.name not in ("steps", "demos", "cli")
    ]
    seen = {}
    for namespace in namespaces:
        for node in ast.parse(Path(namespace.__file__).read_text()).body:
            for alias in getattr(node, "names", []):
                assert alias.asname == alias.name, (
                    f"{namespace.__name__}: import {alias.name} as {alias.name}"
                )
                value = getattr(namespace, alias.name)
                address = f"{namespace.__name__}.{alias.name}"
                assert seen.setdefault(id(value), address) == address, f"{address} is also {seen[id(value)]}"


@pytest.mark.parametrize("name", MODULES)
def test_every_docstring_example_runs(name):
    module = importlib.import_module(name)
    with purestep.rng.scope(mx.random.key(0)):  # modules draw their first weights
        assert doctest.testmod(module).failed == 0


def public(namespace):
    """Yield the functions and classes that a namespace offers as its own."""
    for name, value in vars(namespace).items():
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(namespace.__name__):
            yield name, value


@pytest.mark.parametrize(
    "name", ["", ".transforms", ".optimizers", ".schedules", ".losses", ".data", ".checkpoint"]
)
def test_every_public_function_has_an_example(name):
    for label, value in public(importlib.import_module("purestep" + name)):
        if label.endswith("State") and label != "TrainState":
            continue  # the states of transforms are documented by their fields
        if isinstance(value, type) and issubclass(value, (Exception, Record, Moment, Restored)):
            continue  # and so is what functions give, in whose examples it stands
        members = (
            [getattr(member, "__func__", member) for member in vars(value).values()]
            if isinstance(value, type)
            else []
        )
        texts = [text for text in (value, *members) if isinstance(text.__doc__, str)]
        if not any(">>> " in text.__doc__ for text in texts):
            assert label == "Source", f"{label} has no example"


def test_the_top_level_holds_what_it_should():
    allowed = {"pyproject.toml", "src", "tests", "benchmarks", "README.md"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    tops = {line.partition("/")[0] for line in tracked.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= allowed


def test_the_table_of_state_memory_in_the_readme_is_what_the_code_says():
    from benchmarks import state

    assert state.markdown(state.table()) in (ROOT / "README.md").read_text()


def test_the_readme_begins_with_the_signature():
    assert "step(state, batch) -> (state, metrics)" in (ROOT / "README.md").read_text().splitlines()[0]


@pytest.mark.parametrize("number", range(len(readme_blocks.blocks())))
def test_the_readme_examples_run_and_learn(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = readme_blocks.run(number)
    if number == 0:
        assert namespace["metrics"]["loss"].item() < 0.1


def test_importing_the_library_starts_nothing_and_loads_no_extras():
    code = (
        "import sys, threading, purestep; from purestep import hardware; "
        "print(sorted({'rich', 'matplotlib', 'numpy', 'torch', 'jax'} & set(sys.modules)), "
        "threading.active_count(), hardware.blas())"
    )
    import os

    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    extras, threads, blas = printed.stdout.rsplit(None, 2)
    assert (extras, threads) == ("[]", "1")
    assert blas in ("bundled", "accelerate")
