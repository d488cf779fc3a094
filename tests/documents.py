"""Run the Python code of README and of the guides: `python tests/documents.py`.

A block of README stands alone. The blocks of a guide run one after another and share their names.
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

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / ".github/docs").glob("*.md"))
_TRACKERS = ("tensorboard", "wandb", "mlflow", "swanlab")
_EXTRAS = {"mlx-lm": "mlx_lm", "hypothesis": "hypothesis", **{name: name for name in _TRACKERS}}


def blocks(path: Path) -> list[str]:
    """Return the Python code of a document, a string a block."""
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def needed(block: str) -> str:
    """Return the package that a block needs and this environment lacks, or the empty string."""
    named = re.match(r"# needs: (?:\S*/)?pip install ([\w-]+)\n", block)
    if named and not importlib.util.find_spec(_EXTRAS[named[1]]):
        return named[1]
    return ""


def execute(name: str, code: list[str]) -> dict[str, Any]:
    """Execute blocks in the working directory, one after another; return their names."""
    import mlx.core as mx

    import purestep

    namespace: dict[str, Any] = {}
    with purestep.rng.scope(mx.random.key(0)):
        for number, block in enumerate(code):
            if not needed(block):
                exec(compile(block, f"{name}, block {number + 1}", "exec"), namespace)
    return namespace


def main() -> None:
    """Run every block; an error or a warning ends the process."""
    installed = [name for name in ("numpy", "rich", "matplotlib", "xxhash") if importlib.util.find_spec(name)]
    if "--base" in sys.argv[1:] and installed:
        sys.exit(f"this environment has more than the dependencies: {', '.join(installed)}")
    warnings.simplefilter("error")
    code = [(README.name, [block]) for block in blocks(README)]
    code += [(path.name, blocks(path)) for path in GUIDES]
    for name, each in code:
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            execute(name, each)
    skipped = [needed(block) for _, each in code for block in each if needed(block)]
    print(f"{sum(len(each) for _, each in code) - len(skipped)} blocks ran, {len(skipped)} skipped {skipped}")


if __name__ == "__main__":
    main()
