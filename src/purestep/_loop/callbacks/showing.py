"""`progress` and `plots`, which need extras: their modules are imported when they are called."""

import os
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks
from purestep._loop.core.extras import load
from purestep._loop.core.progress import Callback


def progress(name: str = "step", *, console: Any = None) -> Callback:
    """Show a progress bar: steps, time left, loss and other figures, steps or tokens a second.

    In a terminal it is one live line that fits the width; elsewhere one line is printed for each row.
    Figures with a slash in their name, such as `grad_norms/layers.0`, are left out. Control characters are
    escaped. The time left does not count the first step, which is compiled, and counts
    evaluations.

    Args:
        name: the word before the count.
        console: a `rich.console.Console`; by default one on standard output.

    Raises:
        ImportError: without rich: `pip install 'purestep[cli]'`.

    >>> callback = progress("train")
    """
    return load("progress", "purestep._loop.callbacks.display.bars", "cli").Bar(name, console)


def plots(path: str | os.PathLike[str], *, live: bool = False) -> Callback:
    """Draw losses, learning rate, gradient norm and throughput by step into a PNG.

    The picture is drawn at the end of the run. After resuming, throughput begins anew; the other curves are
    whole. Rare spikes of the loss and of the norm may end above the axes, so that the rest can be read. If
    the file cannot be written, there is one `MetricsWarning`, and nothing is raised.

    Args:
        path: the file, which must end in `.png`; its directory is created.
        live: draw after each evaluation too. Each picture takes about half a second on one core, and
            matplotlib's memory grows by up to half a megabyte.

    Raises:
        ValueError: if the path does not end in `.png`.
        ImportError: without matplotlib: `pip install 'purestep[demo]'`.

    >>> callback = plots("run/curves.png")
    """
    path = check_path("plots", path)
    if path.suffix != ".png":
        raise checks.error("plots", f"path must end in .png, got {str(path)!r}")
    return load("plots", "purestep._loop.callbacks.drawing", "demo").Plots(path, live)
