"""`python -m purestep COMMAND`."""

import sys
from collections.abc import Callable, Sequence

from purestep import __version__
from purestep.cli import demo, inspect, replay

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "demo": (demo.main, "train a small model and show what comes of it"),
    "inspect": (inspect.main, "show and verify checkpoints, or the difference of two"),
    "replay": (replay.main, "make a step that went wrong again, and say where it did"),
}

_USAGE = "\n".join(
    [
        "usage: python -m purestep COMMAND [options]",
        "",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "COMMAND --help lists its options.",
    ]
)


def main() -> int:
    """Run one command; return its exit code."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(_USAGE)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"purestep: there is no command {command!r}\n\n{_USAGE}", file=sys.stderr)
        return 2
    return COMMANDS[command][0](rest)


if __name__ == "__main__":
    sys.exit(main())
