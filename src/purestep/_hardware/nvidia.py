"""NVIDIA GPUs: dense peaks, as datasheets state them or half of what they state with sparsity."""

from purestep._hardware.chips import Chip

_A100 = "NVIDIA A100 Tensor Core GPU datasheet (nvidia-a100-datasheet-nvidia-us-2188504-web.pdf)"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet (resources.nvidia.com), half of 'with sparsity'"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet (nvidia.com/en-us/data-center/h200), half of 'with sparsity'"
_B200 = "NVIDIA Blackwell Architecture Technical Brief, table of HGX B200 (resources.nvidia.com)"
_L4 = "NVIDIA L4 Tensor Core GPU datasheet (nvidia.com/en-us/data-center/l4), half of 'with sparsity'"
_L40S = "NVIDIA L40S datasheet (nvidia.com/en-us/data-center/l40s)"
_GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A"
_AD102 = "NVIDIA Ada GPU Architecture whitepaper, appendix A"
_GB202 = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A"
_T4 = "NVIDIA T4 Tensor Core GPU product brief (PB-09256-001)"
_V100 = "NVIDIA V100 Tensor Core GPU datasheet (v100-datasheet-update-us-1165301-r5.pdf)"
_GB10 = "NVIDIA DGX Spark hardware overview (docs.nvidia.com/dgx/dgx-spark); float32: Hot Chips 2025, GB10"


def _chip(
    names: str,
    tera: tuple[float | None, float | None, float | None, float | None, float | None],
    gigabytes: float,
    source: str,
) -> Chip:
    """Return a row; `names` are separated by `|`, `tera` are float32, tf32, float16, bfloat16 and int8."""
    float32, tf32, float16, bfloat16, int8 = (None if rate is None else rate * 1e12 for rate in tera)
    return Chip(
        tuple(names.split("|")), None, float32, tf32, float16, bfloat16, int8, gigabytes * 1e9, source
    )


# GeForce cards sum float16 products in float16 at twice this rate; MLX sums them in float32.
CHIPS = (
    _chip("NVIDIA A100-SXM4-40GB|NVIDIA A100-PCIE-40GB", (19.5, 156, 312, 312, 624), 1555, _A100),
    _chip("NVIDIA A100-SXM4-80GB", (19.5, 156, 312, 312, 624), 2039, _A100),
    _chip("NVIDIA A100 80GB PCIe", (19.5, 156, 312, 312, 624), 1935, _A100),
    _chip("NVIDIA H100 80GB HBM3", (67, 494.5, 989.5, 989.5, 1979), 3350, f"{_H100}, SXM"),
    _chip("NVIDIA H100 PCIe", (51, 378, 756.5, 756.5, 1513), 2000, f"{_H100}, PCIe"),
    _chip("NVIDIA H100 NVL", (60, 417.5, 835.5, 835.5, 1670.5), 3900, f"{_H100}, NVL"),
    _chip("NVIDIA H200", (67, 494.5, 989.5, 989.5, 1979), 4800, f"{_H200}, SXM"),
    _chip("NVIDIA H200 NVL", (60, 417.5, 835.5, 835.5, 1670.5), 4800, f"{_H200}, NVL"),
    _chip("NVIDIA B200", (80, 1100, 2250, 2250, 4500), 8000, _B200),
    _chip("NVIDIA L4", (30.3, 60, 121, 121, 242.5), 300, _L4),
    _chip("NVIDIA L40S", (91.6, 183, 362.05, 362.05, 733), 864, _L40S),
    _chip("NVIDIA GeForce RTX 3090", (35.6, 35.6, 71, 71, 284), 936, _GA102),
    _chip("NVIDIA GeForce RTX 4090", (82.6, 82.6, 165.2, 165.2, 660.6), 1008, _AD102),
    _chip("NVIDIA GeForce RTX 5090", (104.8, 104.8, 209.5, 209.5, 838), 1792, _GB202),
    _chip("Tesla T4|NVIDIA T4", (8.1, None, 65, None, 130), 320, _T4),
    _chip("Tesla V100-SXM2-16GB|Tesla V100-SXM2-32GB", (15.7, None, 125, None, None), 900, f"{_V100}, SXM2"),
    _chip("Tesla V100-PCIE-16GB|Tesla V100-PCIE-32GB", (14, None, 112, None, None), 900, f"{_V100}, PCIe"),
    _chip("NVIDIA GB10", (31, None, None, None, None), 273, _GB10),
)
