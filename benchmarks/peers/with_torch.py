"""Training GPT-2 with torch, eager and compiled."""

import importlib
import statistics
import time
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.peers.driving import Driver
from benchmarks.workloads import gpt


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
            parts = self.qkv(self.ln1(x)).split(width, dim=2)
            q, k, v = (part.view(rows, seq, shape.heads, -1).transpose(1, 2) for part in parts)
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


class OnTorch(Driver):
    """Waiting and memory of any contestant on torch; `start` returns a tuple that begins with `event()`."""

    def __init__(self):
        self._torch: Any = importlib.import_module("torch")
        self._cuda = self._torch.cuda.is_available()
        self._device = "cuda" if self._cuda else "cpu"

    def event(self) -> Any:
        """Return a mark in the stream; `None` on a CPU, where every call waits."""
        if not self._cuda:
            return None
        event = self._torch.cuda.Event()
        event.record()
        return event

    def wait(self, started: Any) -> None:
        """Wait for this step alone: reading the loss would wait for the later ones too."""
        if started[0] is not None:
            started[0].synchronize()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._cuda:
            self._torch.cuda.synchronize()

    def release(self) -> None:
        """Empty the cache of blocks."""
        if self._cuda:
            self._torch.cuda.empty_cache()

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


class Copy(OnTorch):
    """Copies, for the limit of memory."""

    def rate(self) -> float:
        """Return how many bytes a second are read and written when an array of 512 MiB is copied."""
        size = 2**27 if self._cuda else 2**24
        source = self._torch.zeros(size, device=self._device)
        target, times = self._torch.empty_like(source), []
        for _ in range(20):
            begin = time.perf_counter()
            target.copy_(source)
            self.synchronize()
            times.append(time.perf_counter() - begin)
        return 8 * size / statistics.median(times)


class Step(OnTorch):
    """Autocast, fused AdamW, clipping by foreach; `torch.compile` of the model if `compiled`."""

    def __init__(self, shape: gpt.Shape, microbatches: int, compiled: bool):
        super().__init__()
        torch, device = self._torch, self._device
        self._shape, self._microbatches, self._made = shape, microbatches, 0
        plain = model(torch, shape).to(device)
        self._params = list(plain.parameters())
        self._model = torch.compile(plain) if compiled else plain
        self._optimizer = torch.optim.AdamW(
            self._params, lr=gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY, fused=True
        )
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
        return self.event(), total, norm

    def read(self, started: Any) -> list[float]:
        """Return loss and norm."""
        return [float(value) for value in started[1:]]
