"""Type checkers infer the types that the snippets here state.

A line `reveal_type(expression)  # -> T` states the type, a line with `# error: reason` must be refused, and
no other line may be.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = Path(__file__).parent
ROOT = ROOM.parents[1]
SNIPPETS = sorted(path for path in ROOM.glob("*.py") if not path.name.startswith(("test_", "__")))


def stated():
    """Return, by file and line, the type that a comment states, or `error`."""
    lines = {}
    for path in SNIPPETS:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if found := re.search(r"# (?:-> (.+)|(error): .+)$", line):
                lines[path.name, number] = found[1] or found[2]
            else:
                assert "reveal_type(" not in line, f"{path.name}, line {number} states no type"
    return lines


def plain(shown):
    """Return a type as the snippets write it: no modules, NamedTuples by name."""
    shown = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", shown)
    # mypy shows a NamedTuple as tuple[..., fallback=Name]; the innermost are replaced first.
    opened = []
    result = ""
    for char in shown:
        result += char
        if char == "[":
            opened.append(len(result) - 1)
        elif char == "]":
            start = opened.pop()
            fallback = re.search(r", fallback=(\w+)\]$", result[start:])
            if fallback:
                result = result[: start - len("tuple")] + fallback[1]
    return result


def command(name):
    """Return the path of a tool beside this Python or on the path; skip the test if it is missing."""
    found = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def pyright(scratch):
    # A configuration of its own: that of the project leaves out the snippets, which hold errors on purpose.
    options = {
        "include": [os.path.relpath(ROOM, scratch)],
        "extraPaths": [str(ROOT / "src")],
        "pythonVersion": "3.11",
    }
    (scratch / "pyrightconfig.json").write_text(json.dumps({**options, "typeCheckingMode": "standard"}))
    run = [command("pyright"), "--outputjson", "--pythonpath", sys.executable, "--project", str(scratch)]
    printed = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for entry in json.loads(printed)["generalDiagnostics"]:
        place = Path(entry["file"]).name, entry["range"]["start"]["line"] + 1
        yield place, entry["severity"], entry["message"]


def mypy(scratch):
    run = [command("mypy"), "--python-executable", sys.executable, "--cache-dir", str(scratch)]
    # mlx.nn exports by plain imports, and only the snippets are checked.
    run += ["--strict", "--implicit-reexport", "--follow-imports", "silent", *map(str, SNIPPETS)]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for line in done.stdout.splitlines():
        if found := re.match(r"(.+?):(\d+): (error|note): (.*)", line):
            yield (Path(found[1]).name, int(found[2])), found[3], found[4]


CHECKERS = {"pyright": pyright, "mypy": mypy}


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_types_are_those_that_the_snippets_state(checker, tmp_path):
    found = {}
    for place, severity, message in CHECKERS[checker](tmp_path):
        if severity == "error":
            found[place] = "error" if stated().get(place) == "error" else message
        elif revealed := re.search(r'(?:^Revealed type is|^Type of .* is) "(.*)"$', message):
            found.setdefault(place, plain(revealed[1]))
    assert found == stated()
