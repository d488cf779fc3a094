"""Training GPT-2 with torch, eager and compiled."""

import importlib
from contextlib import AbstractContextManager
from typing import Any

from benchmarks import gpt
from benchmarks.driving import Driver


def model(torch: Any, shape: gpt.Shape) -> Any:
    """Return GPT-2 as a module whose forward pass returns the loss."""
    functional = torch.nn.functional

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            width = shape.width
            self.ln1 = torch.nn.LayerNorm(width, gpt.EPSILON)
            self.ln2 = torch.nn.LayerNorm(width, gpt.EPSILON)
            self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
            self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            rows, seq, width = x.shape
            heads = self.qkv(self.ln1(x)).view(rows, seq, 3, shape.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = heads.unbind(0)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(rows, seq, width))
            return x + self.down(functional.gelu(self.up(self.ln2(x)), approximate="tanh"))

    class GPT(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = torch.nn.Embedding(shape.vocabulary, shape.width)
            self.wpe = torch.nn.Embedding(shape.context, shape.width)
            self.blocks = torch.nn.ModuleList(Block() for _ in range(shape.layers))
            self.ln = torch.nn.LayerNorm(shape.width, gpt.EPSILON)

        def forward(self, inputs: Any, targets: Any) -> Any:
            x = self.wte(inputs) + self.wpe.weight[: inputs.shape[1]]
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.ln(x), self.wte.weight)
            return functional.cross_entropy(logits.view(-1, shape.vocabulary), targets.view(-1))

    built = GPT()
    built.load_state_dict({name: torch.from_numpy(value) for name, value in gpt.weights(shape).items()})
    return built


class Step(Driver):
    """Autocast, fused AdamW, clipping by foreach; `torch.compile` of the model if `compiled`."""

    def __init__(self, shape: gpt.Shape, microbatches: int, compiled: bool):
        self._torch: Any = importlib.import_module("torch")
        torch = self._torch
        self._cuda = torch.cuda.is_available()
        device = "cuda" if self._cuda else "cpu"
        self._shape, self._microbatches, self._made = shape, microbatches, 0
        plain = model(torch, shape).to(device)
        self._params = list(plain.parameters())
        self._model = torch.compile(plain) if compiled else plain
        self._optimizer = torch.optim.AdamW(
            self._params, lr=gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY, fused=True
        )
        self._device = device
        self._batches = [
            [
                [half.to(device) for half in pair]
                for pair in zip(*(torch.from_numpy(x).long().chunk(microbatches) for x in batch), strict=True)
            ]
            for batch in gpt.batches(shape, microbatches)
        ]

    def _cast(self) -> AbstractContextManager[Any]:
        dtype = getattr(self._torch, self._shape.dtype)
        return self._torch.autocast(self._device, dtype=dtype, enabled=self._shape.dtype != "float32")

    def start(self) -> Any:
        """Start a step."""
        torch, total = self._torch, None
        self._optimizer.zero_grad(set_to_none=True)
        for inputs, targets in self._batches[self._made % gpt.BATCHES]:
            with self._cast():
                loss = self._model(inputs, targets) / self._microbatches
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._params, gpt.MAX_NORM, foreach=True)
        self._optimizer.step()
        self._made += 1
        event = torch.cuda.Event() if self._cuda else None
        if event is not None:
            event.record()
        return total, norm, event

    def wait(self, started: Any) -> None:
        """Wait for this step alone: reading the loss would wait for the later ones too."""
        if started[2] is not None:
            started[2].synchronize()

    def read(self, started: Any) -> list[float]:
        """Return loss and norm."""
        return [float(value) for value in started[:2]]

    def reset_peak(self) -> None:
        """Start a new peak."""
        if self._cuda:
            self._torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """Return the peak of allocated tensors."""
        return self._torch.cuda.max_memory_allocated() if self._cuda else None

    def note(self) -> str:
        """Return the version."""
        return f"torch {self._torch.__version__}"
