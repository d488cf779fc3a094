"""What a training step takes: bytes by kind."""

from typing import NamedTuple


class MemoryReport(NamedTuple):
    """The memory of a training step, in bytes.

    `peak` is the sum of `parameters`, `optimizer`, `other`, `frozen`, `batch`, `gradients`, `activations` and
    `waiting`: what is there when the peak is reached.

    Attributes:
        parameters: of the state.
        optimizer: `opt_state`.
        other: the rest of the state, such as the key and `model_state`.
        frozen: arrays that the loss function reads from elsewhere, such as the base of adapters.
        batch: one batch.
        gradients: arrays of the shapes of parameters: gradients, updates, and copies in another dtype.
        activations: all other results that are still needed.
        waiting: results that are not needed any more, but which kernels that have not run yet read.
        peak: the most at one time, in a loop that evaluates each new state and keeps only that one.
        peak_in_run: the most in `ps.run` and `ps.fit`, which keep a state while the next is computed.
        at: MLX's name of the operation that takes the peak.
        device: `cpu`, or the name of the GPU.

    >>> report = MemoryReport(1, 2, 0, 0, 1, 3, 5, 0, 12, 15, "Matmul", "cpu")
    >>> report.fits(12), report.fits(11)
    (True, False)
    """

    parameters: int
    optimizer: int
    other: int
    frozen: int
    batch: int
    gradients: int
    activations: int
    waiting: int
    peak: int
    peak_in_run: int
    at: str
    device: str

    def fits(self, budget: float) -> bool:
        """Tell whether `peak` is at most a budget in bytes."""
        return self.peak <= budget
