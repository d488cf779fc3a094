"""The picture of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def loss_curve(
    path: Path, history: Sequence[Mapping[str, Any]], baseline: tuple[str, float], title: str
) -> None:
    """Draw training and validation loss by step, and a horizontal line to beat.

    Args:
        path: the PNG to write.
        history: rows with `step`, `loss` and, in some, `validation_loss`.
        baseline: its name and its loss.
        title: the heading.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [row["step"] for row in history]
    losses = [row["loss"] for row in history]
    axes.plot(steps, losses, color="#b8cce4", linewidth=1, label="training, each batch")
    axes.plot(steps, smoothed(losses), color="#1f5fa8", linewidth=1.8, label="training, smoothed")
    measured = [row for row in history if "validation_loss" in row]
    axes.plot(
        [row["step"] for row in measured],
        [row["validation_loss"] for row in measured],
        color="#d1622b",
        marker="o",
        linewidth=1.8,
        label="validation",
    )
    name, value = baseline
    axes.axhline(
        value, color="#555555", linestyle="--", linewidth=1.2, label=f"{name}, validation: {value:.3f}"
    )
    if losses:
        axes.set_ylim(min([value, *losses]) * 0.9, max([value * 1.1, *losses[:5]]) * 1.05)
    axes.set(xlabel="step", ylabel="loss (nats a character)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)


def smoothed(values: Sequence[float], decay: float = 0.95) -> list[float]:
    """Return the bias-corrected running mean."""
    mean, out = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = decay * mean + (1 - decay) * value
        out.append(mean / (1 - decay**count))
    return out
