"""`python -m purestep COMMAND`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from purestep import __version__
from purestep.cli import demo, doctor, inspect, memory, plot, replay, sweep, train, watch
from purestep.cli.core.commands import Parser, command

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train.main, "train a model on a text, JSONL or token file"),
    "sweep": (sweep.main, "train a model for every combination of some settings"),
    "memory": (memory.main, "predict the memory of a training run before it begins"),
    "demo": (demo.main, "train a small model and show the results"),
    "plot": (plot.main, "show the curves of runs, and write them as a picture or a page"),
    "watch": (watch.main, "follow a run as it goes on"),
    "inspect": (inspect.main, "show and verify checkpoints, or compare two"),
    "replay": (replay.main, "run a failed step again and find the first value that is not finite"),
    "doctor": (doctor.main, "check this machine: what it has, how fast it is, what is wrong"),
}


def main() -> int:
    """Run one command; return its exit status."""
    arguments = sys.argv[1:] or ["--help"]
    found = COMMANDS.get(arguments[0])
    return _about(arguments) if found is None else found[0](arguments[1:])


@command("purestep")
def _about(arguments: Sequence[str]) -> int:
    parser = Parser("", epilog="COMMAND --help lists the options of a command and its exit statuses.")
    parser.add_argument("--version", action="version", version=__version__)
    choices = parser.add_subparsers(
        metavar="COMMAND", title="commands", required=True, parser_class=argparse.ArgumentParser
    )
    for name, (_, about) in COMMANDS.items():
        choices.add_parser(name, help=about, add_help=False)
    if not arguments[0].startswith("-"):
        print(f"purestep: there is no command {arguments[0]!r}\n", file=sys.stderr)
        parser.print_help(sys.stderr)
        return 2
    parser.parse_args(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
