"""The loss of an output projection with torch, eager and compiled."""

from typing import Any

from benchmarks.peers.with_torch import OnTorch
from benchmarks.workloads.projection import Projection, sampled


class Loss(OnTorch):
    """`cross_entropy` of all logits in float32, as torch's autocast computes it."""

    def __init__(self, problem: Projection, compiled: bool):
        super().__init__()
        functional = self._torch.nn.functional

        def loss(hidden: Any, weight: Any, targets: Any) -> Any:
            return functional.cross_entropy((hidden @ weight.T).float(), targets)

        self._loss = self._torch.compile(loss) if compiled else loss
        self._inputs = self._tensors(problem)

    def _tensors(self, problem: Projection) -> list[Any]:
        torch, made = self._torch, []
        for array in problem.arrays():
            tensor = torch.from_numpy(array).to(self._device)
            floating = tensor.is_floating_point()
            tensor = tensor.to(getattr(torch, problem.dtype)) if floating else tensor.long()
            made.append(tensor.requires_grad_(floating))
        return made

    def _compute(self, inputs: list[Any]) -> tuple[Any, Any, Any]:
        loss = self._loss(*inputs)
        return loss.detach(), *self._torch.autograd.grad(loss, inputs[:2])

    def results(self, problem: Projection) -> list[list[float]]:
        """Return the loss, and samples of both gradients, of another problem."""
        return self._sampled(self._compute(self._tensors(problem)))

    def result(self) -> list[list[float]]:
        """Return the loss, and samples of both gradients, of the problem that is timed."""
        return self._sampled(self._compute(self._inputs))

    def _sampled(self, result: Any) -> list[list[float]]:
        loss, *gradients = result
        return [[loss.item()], *(sampled(g.float().reshape(-1)) for g in gradients)]

    def start(self) -> Any:
        """Start loss and gradients."""
        result = self._compute(self._inputs)
        return self.event(), result

    def peak(self, steps: int) -> int | None:
        """Return the peak of memory over inputs and gradients; `None` on a CPU."""
        if not self._cuda:
            return None
        self.run(2)
        before = self._torch.cuda.memory_allocated()
        self.reset_peak()
        for _ in range(steps):
            self.start()
            self.synchronize()
        gradients = sum(x.numel() * x.element_size() for x in self._inputs[:2])
        return self._torch.cuda.max_memory_allocated() - before - gradients
