"""Run README's Python blocks, each in a directory of its own: `python tests/readme_blocks.py`.

`--base` first checks that the environment has the package's dependencies alone, as `.ci/run` makes one.
"""

import contextlib
import importlib.util
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    """Return the Python code of README, a string a block."""
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(number: int) -> dict[str, Any]:
    """Execute one block in the working directory, from a key of its own; return its names."""
    import mlx.core as mx

    import purestep

    namespace: dict[str, Any] = {}
    with purestep.rng.scope(mx.random.key(0)):
        exec(compile(blocks()[number], f"README.md, block {number + 1}", "exec"), namespace)
    return namespace


def main() -> None:
    """Run every block; an error or a warning ends the process."""
    installed = [name for name in ("numpy", "rich", "matplotlib", "xxhash") if importlib.util.find_spec(name)]
    if "--base" in sys.argv[1:] and installed:
        sys.exit(f"this environment has more than the dependencies: {', '.join(installed)}")
    warnings.simplefilter("error")
    for number in range(len(blocks())):
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            run(number)
    print(f"README: {len(blocks())} blocks ran")


if __name__ == "__main__":
    main()
