"""The shape of the package: imports point one way, every name has one address, every example runs."""

import ast
import doctest
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import mlx.core as mx
import pytest

import purestep
from purestep.checkpoint import Moment, Record, Restored

PACKAGE = Path(purestep.__file__).parent
ROOT = Path(__file__).parents[1]

# Each imports only from its left; so do the rooms within a room.
LAYOUT = {
    "": (
        "_core _hardware _layers _modules _schedules _transforms _losses _steps _population _checkpoint "
        "_parallel _adapters _data _measures _graph _export _memory _replay _loop types rng tree hardware "
        "layers adapters transforms optimizers schedules losses populations data checkpoint parallel memory "
        "replay metrics callbacks testing demos cli __main__"
    ).split(),
    "_core": (
        "escaping hardware sums mean types collective checks scalars tree tracing cuda pacing norms packing "
        "rng"
    ).split(),
    "_hardware": "chips apple nvidia lookup machine device rates settings".split(),
    "_layers": (
        "kernels exponential blocks attention calling activations fused_norms reduced parts substitutes "
        "recomputing observing recording"
    ).split(),
    "_layers.kernels": "columns lookups splits norm_sources norms".split(),
    "_core.tracing": "microbatching replacing custom graph ordering context".split(),
    "_core.packing": "layout trees shards".split(),
    "_core.tree": "naming patterns mapping specs numbers".split(),
    "_transforms": "core inspection pieces wrappers algorithms".split(),
    "_transforms.algorithms": "adam adagrad momentum layerwise automatic".split(),
    "_losses": "core supervised tokens preference policy".split(),
    "_population": "members choosing mapping population reducing".split(),
    "_checkpoint": "format disk ranks restoring files exporting run inspecting".split(),
    "_parallel": (
        "groups agreement merging states channel verdicts hub member watchdog data_parallel sharded"
    ).split(),
    "_graph": "nodes fast experts capture counting fusing scheduling".split(),
    "_export": "cursor layouts program plain tracing resolving sidecar exporting importing".split(),
    "_memory": "layout views convolutions kernels queues simulating reporting predicting limits".split(),
    "_adapters": (
        "kinds low_rank magnitude selecting rebuilding adding reporting removing configuration saving loading"
    ).split(),
    "_data": "core sampling arrays text streams curricula ranks".split(),
    "_loop": "core profiling running callbacks config trackers monitors fitting".split(),
    "_loop.profiling": "clock figures capturing drawing profiler".split(),
    "_steps": (
        "state step core train compile scan unrolling evaluate sam precision loss_scaled cached_contrastive"
    ).split(),
}
FOREIGN = {"mlx", "msgpack", "safetensors"}
EXTRAS = {
    "_checkpoint": {"xxhash"},
    "_loop": {"rich", "matplotlib"},
    "testing": {"hypothesis"},
    "demos": {"rich", "matplotlib"},
    "cli": {"rich", "matplotlib"},
}

# Tests of more than 400 lines, and rooms of tests that stand for no room of the package.
LONG_TESTS: set[str] = set()
TEST_ROOMS = {"_checkpoint/faults", "_checkpoint/hostile", "_checkpoint/syscalls"}

# Protocols, and plain data that functions give.
WITHOUT_EXAMPLE = {"Source", "OnPolicySource", "Run", "Progress", "Device", "Memory", "Rate", "Chip"}

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


def points_up(own, imported):
    """Tell whether a file may import a module: where their rooms part, the module's comes first."""
    shared = 0
    while shared < min(len(own), len(imported)) and own[shared] == imported[shared]:
        shared += 1
    if shared == min(len(own), len(imported)) or own[shared] == "__init__":
        return True
    order = LAYOUT.get(".".join(own[:shared]))
    if not shared and imported[0] not in order:  # a public name
        return own[0] in ("testing", "demos", "cli")
    return order is None or order.index(imported[shared]) < order.index(own[shared])


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_up_the_layout_and_stay_within_the_dependencies(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts
    for module, inside in imports(path):
        top, *below = module.split(".")
        assert not inside, f"{module} is imported inside a function"
        if top == "purestep":
            if own not in (("__init__",), ("__main__",)):
                assert points_up(own, below), f"{'.'.join(own)} imports {module}"
        else:
            allowed = FOREIGN | EXTRAS.get(own[0], set())
            assert top in sys.stdlib_module_names or top in allowed, f"{module} is not a dependency"


NAMESPACES = ["purestep"] + [
    f"purestep.{info.name}"
    for info in pkgutil.iter_modules(purestep.__path__)
    if not info.name.startswith("_") and info.name not in ("demos", "cli")
]


def test_every_public_name_has_one_address():
    seen = {}
    for name in NAMESPACES:
        namespace = importlib.import_module(name)
        for label in namespace.__all__:
            value = getattr(namespace, label)
            address = f"{name}.{label}"
            if not inspect.ismodule(value) and value is not Any:  # several aliases of a tree
                assert seen.setdefault(id(value), address) == address, f"{address} is also {seen[id(value)]}"


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_public_namespace_shows_its_public_names_alone(name):
    namespace = importlib.import_module(name)
    assert dir(namespace) == sorted(namespace.__all__)
    assert len(set(namespace.__all__)) == len(namespace.__all__)


def test_no_public_name_of_an_earlier_version_is_missing():
    recorded = (ROOT / "tests/references/public_names.txt").read_text().split()
    missing = [name for name in recorded if not has(name)]
    assert not missing


def has(name):
    value = purestep
    for part in name.split("."):
        if inspect.ismodule(value) and not hasattr(value, part):
            importlib.import_module(f"{value.__name__}.{part}")  # `metrics` and `testing` are asked for
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def test_importing_a_module_hides_no_public_name():
    """A module that shares its name with a function would take its place on import."""
    for name in MODULES:
        importlib.import_module(name)
    for space in NAMESPACES:
        namespace = importlib.import_module(space)
        for label in {*namespace.__all__} - {"laws", *(each.rpartition(".")[2] for each in NAMESPACES)}:
            assert not inspect.ismodule(getattr(namespace, label)), f"{space}.{label} is a module"


@pytest.mark.parametrize("name", MODULES)
def test_every_docstring_example_runs(name):
    module = importlib.import_module(name)
    with purestep.rng.scope(mx.random.key(0)):  # modules draw their first weights
        assert doctest.testmod(module).failed == 0


def public(namespace):
    """Yield the functions and classes that a namespace offers as its own."""
    for name in namespace.__all__:
        if inspect.isfunction(getattr(namespace, name)) or inspect.isclass(getattr(namespace, name)):
            yield name, getattr(namespace, name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        *".transforms .optimizers .schedules .losses .adapters .data .checkpoint .callbacks".split(),
        ".populations",
        ".hardware",
        ".parallel",
    ],
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
            assert label in WITHOUT_EXAMPLE, f"{label} has no example"


def test_files_and_rooms_stay_small():
    """A file of the library has at most 300 lines, and a room a dozen modules beside its `__init__`."""
    long = [str(path) for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 300]
    rooms = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    crowded = [str(room) for room in rooms if len({*room.glob("*.py")} - {room / "__init__.py"}) > 12]
    assert (long, crowded) == ([], [])


def test_tests_mirror_the_rooms_share_by_helpers_and_stay_small():
    """What two test files need stands in a helper or a `conftest.py`."""
    tests = ROOT / "tests"
    files = {path.relative_to(tests).as_posix(): path for path in tests.rglob("test_*.py")}
    # As text: a test may run a program that it holds as a string.
    borrowing = re.compile(r"^\s*(from|import) .*\btest_.*", re.MULTILINE)
    borrowed = [
        f"{name}: {found.group().strip()}"
        for name, path in files.items()
        for found in borrowing.finditer(path.read_text())
    ]
    long = {name for name, path in files.items() if len(path.read_text().splitlines()) > 400}
    rooms = {path.parent.relative_to(tests).as_posix() for path in files.values()}
    astray = {room for room in rooms if room.startswith("_") and not (PACKAGE / room).is_dir()}
    assert (borrowed, long, astray) == ([], LONG_TESTS, TEST_ROOMS)


def test_the_top_level_holds_what_it_should():
    allowed = {"pyproject.toml", "src", "tests", "benchmarks", "README.md"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    tops = {line.partition("/")[0] for line in tracked.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= allowed


def test_importing_the_library_starts_nothing_and_loads_no_extras():
    code = (
        "import sys, threading, purestep; from purestep._core import hardware; "
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
