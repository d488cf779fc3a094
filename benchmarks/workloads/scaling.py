"""Time and memory of a training step on many devices, computed from a few measured rates."""

from typing import NamedTuple

MOMENTS = 8  # bytes of AdamW's float32 state for each parameter
ACTIVATION = 53  # bytes for each token, layer and feature of a GPT without recomputation, as measured
KEPT = 2  # the same if each block is recomputed: the input of the block
RECOMPUTED = 4 / 3  # time of the products of a step whose blocks are recomputed
LOGIT = 6  # bytes for each token and class: the logits in bfloat16 and their gradient in float32
HEADROOM = 1.1  # peak over what is alive at once: kernels that wait for the device hold their inputs


class Model(NamedTuple):
    """A transformer.

    Attributes:
        name: what it is called.
        parameters: their number.
        layers: blocks.
        width: features of a token.
        vocabulary: classes.
        context: tokens of a sequence.
        wide: whether the parameters are float32; otherwise bfloat16.
    """

    name: str
    parameters: float
    layers: int
    width: int
    vocabulary: int = 128_000
    context: int = 4096
    wide: bool = False

    @property
    def flops(self) -> float:
        """Floating-point operations of a step for each token."""
        return 6 * self.parameters + 12 * self.layers * self.width * self.context


MODELS = (
    Model("1B", 1.2e9, 16, 2048),
    Model("3B", 3.2e9, 28, 3072),
    Model("8B", 8.0e9, 32, 4096),
    Model("14B", 14.8e9, 48, 5120),
    Model("32B", 32.8e9, 64, 5120),
    Model("70B", 70.6e9, 80, 8192),
)


class Rates(NamedTuple):
    """What was measured, in SI units.

    Attributes:
        flops: floating-point operations a second of loss and gradients.
        copy: bytes a second that kernels read and write.
        link: bytes a second of a collective within a host, as NCCL counts them: what each device sends.
        network: the same between hosts.
        latency: seconds of each of the steps in which a collective passes data on.
        memory: bytes of a device.
        host: devices of a host.
    """

    flops: float
    copy: float
    link: float
    network: float = 50e9
    latency: float = 5e-6
    memory: float = 141e9
    host: int = 8


class Cost(NamedTuple):
    """What a step costs on each device.

    Attributes:
        seconds: of the step.
        memory: peak in bytes.
        recomputes: whether each block is recomputed, so that the step fits.
        efficiency: the time of one device, which needs no collective, as a part of `seconds`.
        fits: whether the peak is at most the memory of a device.
    """

    seconds: float
    memory: float
    recomputes: bool
    efficiency: float
    fits: bool


def cost(model: Model, devices: int, rates: Rates, *, tokens: float, sharded: bool) -> Cost:
    """Return what a step of `data_parallel` or `sharded` costs on each of so many devices.

    Gradients come in bfloat16 and are summed in the dtype of the parameters. Collectives do not overlap with
    other work: MLX runs the whole step as one graph on one stream.

    Args:
        model: the model.
        devices: their number.
        rates: of the machine.
        tokens: of a batch on each device.
        sharded: whether the optimizer state is divided.
    """
    n, size = model.parameters, 4 if model.wide else 2
    parts = devices if sharded else 1
    kept = ACTIVATION * tokens * model.layers * model.width
    logits = LOGIT * tokens * model.vocabulary
    gradients = (2 + size if parts == 1 else size / parts) * n
    state = (size + (2 if model.wide else 0) + MOMENTS / parts) * n + gradients
    whole = HEADROOM * (state + kept + logits)
    recomputes = whole > rates.memory
    memory = whole if not recomputes else HEADROOM * (
        state + kept * KEPT / ACTIVATION + ACTIVATION * tokens * model.width + logits
    )  # fmt: skip
    products = tokens * model.flops / rates.flops * (RECOMPUTED if recomputes else 1)
    update = (size * 2 + 2 * MOMENTS + size) * n / rates.copy
    joined = (2 + size) * n / rates.copy if devices > 1 else 0.0
    sent = _collectives(size * n, devices, rates)
    seconds = products + update / parts + joined + sent
    return Cost(seconds, memory, recomputes, (products + update) / seconds, memory <= rates.memory)


def _collectives(size: float, devices: int, rates: Rates) -> float:
    """Return the seconds of an all-reduce, or of a reduce-scatter and an all-gather, of so many bytes."""
    if devices == 1:
        return 0.0
    rate = rates.link if devices <= rates.host else min(rates.link, rates.network)
    return 2 * (devices - 1) * (size / devices / rate + rates.latency)
