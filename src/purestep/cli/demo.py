"""`python -m purestep demo [NAME] [options]`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import mlx.core as mx

from purestep._core import hardware
from purestep.demos import NAMES

_KEEP_BUNDLED = "PURESTEP_BLAS"


def main(arguments: Sequence[str]) -> int:
    """Run a demo; `text` when none is named."""
    if not arguments or arguments[0] not in NAMES:
        if arguments and not arguments[0].startswith("-"):
            print(f"demo: there is no demo {arguments[0]!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
            return 2
        arguments = ("text", *arguments)
    name, *rest = arguments
    try:
        demo = importlib.import_module(f"purestep.demos.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        print(f"demo: {error.name} is not installed; pip install 'purestep[demo]'", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        prog=f"python -m purestep demo {name}", description=demo.__doc__, allow_abbrev=False
    )
    demo.add_arguments(parser)
    options = parser.parse_args(rest)
    with_openblas()
    try:
        return demo.run(options)
    except (ValueError, OSError) as error:
        print(error if str(error).startswith("demo") else f"demo: {error}", file=sys.stderr)
        return 2


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
        f"OpenBLAS is installed: starting again with LD_PRELOAD={library} "
        f"({_KEEP_BUNDLED}=bundled prevents it)",
        file=sys.stderr,
        flush=True,
    )
    environment = {**os.environ, "LD_PRELOAD": f"{preloaded} {library}".strip()}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
