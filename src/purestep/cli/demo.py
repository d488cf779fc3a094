"""`python -m purestep demo [NAME] [options]`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import hardware
from purestep._core.escaping import printable
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, Parser, command
from purestep.demos import NAMES

# The first lines of the modules' docstrings, repeated: importing the modules needs rich and matplotlib.
ABOUT = {
    "text": "Train a character transformer on a text and continue the text.",
    "digits": "Train a convolutional network to read handwritten digits, with BatchNorm and Dropout.",
    "grpo": "Teach an untrained transformer to sort digits with GRPO, from rewards alone.",
    "dpo": "Teach a transformer that sorts digits up or down to prefer one order, with DPO.",
    "distill": "Train a small character model with and without a teacher, and compare.",
    "mtp": "Train a small transformer with and without multi-token prediction, and compare.",
    "finetune": "Pretrain a small language model on a text, then tune it with LoRA to follow instructions.",
}

_ENDS = f"""Exit status: 0 the run is complete; 1 a value was not finite, or the output cannot be written;
2 the arguments are wrong, or a file cannot be read or written. {ENDS}"""
_DESCRIPTION = "Run a demo (default: text). Each demo trains a small model from random weights."
_EPILOG = f"demo NAME --help lists the options of a demo.\n\n{_ENDS}"
_KEEP_BUNDLED = "PURESTEP_BLAS"


@command("demo")
def main(arguments: Sequence[str]) -> int:
    """Run a demo, by default `text`."""
    if arguments and arguments[0] in ("-h", "--help"):
        _list_demos()
        return 0
    if not arguments or arguments[0] not in NAMES:
        if arguments and not arguments[0].startswith("-"):
            output.fail("demo", f"there is no demo {arguments[0]!r}; there are: {', '.join(NAMES)}")
            return 2
        arguments = ("text", *arguments)
    name, *rest = arguments
    try:
        demo: Any = importlib.import_module(f"purestep.demos.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        output.fail("demo", f"{error.name} is not installed; pip install 'purestep[demo]'")
        return 2
    parser = Parser(f"demo {name}", description=ABOUT[name], epilog=_ENDS)
    demo.add_arguments(parser)
    options = parser.parse_args(rest)
    with_openblas()
    try:
        return demo.run(options)
    except (ValueError, OSError) as error:
        output.fail("demo", error)
        return 2


def _list_demos() -> None:
    parser = Parser("demo", description=_DESCRIPTION, epilog=_EPILOG)
    choices = parser.add_subparsers(metavar="NAME", title="demos", parser_class=argparse.ArgumentParser)
    for name, about in ABOUT.items():
        choices.add_parser(name, help=about, add_help=False)
    parser.print_help()


def with_openblas() -> None:
    """Restart this command with OpenBLAS in place of MLX's bundled BLAS, if OpenBLAS is installed.

    On Linux CPUs a matrix product is then about forty times faster. OpenBLAS must be loaded before MLX, which
    needs a new process. PURESTEP_BLAS=bundled prevents the restart.
    """
    library = hardware.find_openblas()
    wanted = os.environ.get(_KEEP_BUNDLED) != "bundled" and mx.default_device() == mx.Device(mx.cpu)
    preloaded = os.environ.get("LD_PRELOAD", "")
    if not wanted or library is None or hardware.blas() != "bundled" or library in preloaded.split():
        return
    print(
        f"OpenBLAS is installed: starting again with LD_PRELOAD={printable(library)} "
        f"({_KEEP_BUNDLED}=bundled prevents it)",
        file=sys.stderr,
        flush=True,
    )
    environment = {**os.environ, "LD_PRELOAD": f"{preloaded} {library}".strip()}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
