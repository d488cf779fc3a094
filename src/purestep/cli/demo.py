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
from purestep.cli import output
from purestep.cli.commands import ENDS, Parser, command
from purestep.demos import NAMES

# Here, too, what each module's docstring says: to import them needs rich and matplotlib.
ABOUT = {
    "text": "Train a character transformer on a text, and write some more of it.",
    "grpo": "Teach a transformer that knows nothing to sort digits by reward alone, with GRPO.",
    "dpo": "Teach a transformer that sorts digits either way which way is preferred, with DPO.",
    "distill": "Train a small character model on a little text twice, alone and with a teacher, and compare.",
    "mtp": "Teach a small transformer from hints that mostly mislead, with and without predicting what "
    "follows them.",
}

_ENDS = f"""Exit status: 0 the run is complete; 1 it stopped at a value that is not finite, or its output
cannot be written; 2 the arguments are wrong, or a file cannot be read or written. {ENDS}"""
_DESCRIPTION = "Run one of the demos, text if none is named. Each trains a small model from nothing."
_EPILOG = f"demo NAME --help lists the options of a demo.\n\n{_ENDS}"
_KEEP_BUNDLED = "PURESTEP_BLAS"


@command("demo")
def main(arguments: Sequence[str]) -> int:
    """Run a demo; `text` when none is named."""
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
    """Start this command again with OpenBLAS in place of MLX's bundled BLAS, if one is installed.

    On Linux CPUs a matrix product is then some forty times faster. It has to be loaded before MLX is,
    so only a new process can do it. PURESTEP_BLAS=bundled keeps the process as it is.
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
