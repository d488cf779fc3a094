"""Clipping and AdamW over given gradients with torch: fused and by foreach."""

from typing import Any

from benchmarks.peers.with_torch import OnTorch
from benchmarks.workloads import gpt


class Update(OnTorch):
    """`clip_grad_norm_` and one of torch's implementations of AdamW."""

    def __init__(self, shape: gpt.Shape, clip: bool, implementation: str):
        super().__init__()
        torch, self._clip = self._torch, clip
        gradients = gpt.gradients(shape)
        self._params = {
            name: torch.nn.Parameter(torch.from_numpy(value).to(self._device))
            for name, value in gpt.weights(shape).items()
        }
        for name, param in self._params.items():
            param.grad = torch.from_numpy(gradients[name]).to(self._device)
        self._list = list(self._params.values())
        self._optimizer = torch.optim.AdamW(
            self._list, lr=gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY, **{implementation: True}
        )

    def start(self) -> Any:
        """Start an update. Clipping happens in place: from the second update on the norm is 1."""
        if self._clip:
            self._torch.nn.utils.clip_grad_norm_(self._list, gpt.MAX_NORM, foreach=True)
        self._optimizer.step()
        return (self.event(),)

    def read(self, started: Any) -> list[float]:
        """Return the parameters that are compared."""
        return gpt.sampled({name: param.detach() for name, param in self._params.items()})
