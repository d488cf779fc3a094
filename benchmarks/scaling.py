"""Time, memory and efficiency of models of 1B to 70B parameters on 8 to 512 GPUs, computed.

The rates are those of the records in `benchmarks/results`: GPT-2 on one GPU and the all-reduce on 8, and the
update of packed parameters. The network between hosts is an assumption, --network. Nothing is measured.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bar, Limit, Panel, Record, Spread, records
from benchmarks.workloads import gpt, scaling

DEVICES = (8, 64, 512)
GROUPS = ("distributed-gpt2-2", "distributed-gpt2-4", "distributed-gpt2-8")
UPDATE, RANKS = "optimizer-gpt2", "ranks-8"
_HEAD = ["model"] + [f"{kind}, {count}" for kind in ("whole", "divided") for count in DEVICES]
_CHECK_HEAD = ["a step", "measured", "computed", "ratio"]
PAYS = 0.9  # efficiency
LARGE = scaling.Model("18.8B", 18.76e9, 93, 4096, 8192, 256)  # of bfloat16 parameters, on H200
BY_HAND = (4, 0.327, 95.1e9)  # GPUs; seconds of a step with 256 tokens a GPU, and bytes at its peak


def rates(network: float, memory: float) -> tuple[scaling.Rates, dict[str, Any]]:
    """Return the rates of the newest records, and the records by label."""
    found: dict[str, Any] = {}
    for path in sorted(records.RESULTS.glob("*nvidia*.json")):
        record = json.loads(path.read_text())
        found[record["label"]] = record
    group, copy = found[GROUPS[-1]], max(found[UPDATE]["copies"].values())
    count, size = group["count"], 4 * gpt.parameters(gpt.SIZES["gpt2"])
    taken = group["contestants"][f"all-reduce, {count}"]["seconds"]
    link = 2 * (count - 1) / count * size / taken
    return scaling.Rates(flops(group, copy), copy, link, network, memory=memory), found


def flops(group: dict[str, Any], copy: float) -> float:
    """Return the rate of loss and gradients on one GPU in a record of `distributed`."""
    model, shape = as_model(), gpt.SIZES["gpt2"]
    products = group["contestants"]["purestep packed, 1"]["seconds"] - 28 * model.parameters / copy
    return shape.rows * shape.context * model.flops / products


def as_model() -> scaling.Model:
    """Return the model of `distributed`."""
    shape, count = gpt.SIZES["gpt2"], gpt.parameters(gpt.SIZES["gpt2"], multiplied=True)
    return scaling.Model(
        "GPT-2", count, shape.layers, shape.width, shape.vocabulary, shape.context, wide=True
    )


def table(rates: scaling.Rates, tokens: int, *, wide: bool) -> list[list[str]]:
    """Return the rows of the table for float32 or bfloat16 parameters."""
    rows = []
    for model in scaling.MODELS:
        model = model._replace(wide=wide)
        row = [model.name]
        for sharded in (False, True):
            for count in DEVICES:
                made = scaling.cost(model, count, rates, tokens=tokens, sharded=sharded)
                mark = "r" if made.recomputes else ""
                row.append(
                    f"{100 * made.efficiency:.0f} %{mark}" if made.fits else f"{made.memory / 1e9:.0f} GB"
                )
        rows.append(row)
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--tokens", type=harness.positive, default=8192, help="on each GPU (8192)")
    parser.add_argument(
        "--network", type=float, nargs="+", default=[400.0, 50.0], metavar="GB/S",
        help="between hosts, for each GPU (400, as of a network card of 50 for each of 8 GPUs; 50, one card)",
    )  # fmt: skip
    parser.add_argument("--memory", type=float, default=141.0, metavar="GB", help="of a GPU (141)")


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Compute the tables."""
    record.keep(facts=harness.facts(), **computed(options.network, options.memory, options.tokens))


def computed(networks: Sequence[float], memory: float, tokens: int) -> dict[str, Any]:
    """Return the tables, the rates, and the checks against what was measured; GB and GB/s."""
    found: dict[str, Any] = {"tables": [], "curves": {}, "tokens": tokens}
    for network in networks:
        made, sources = rates(network * 1e9, memory * 1e9)
        for wide in (True, False):
            title = f"{'float32' if wide else 'bfloat16'} parameters, {network:g} GB/s between hosts"
            found["tables"].append([title, table(made, tokens, wide=wide)])
        for model in scaling.MODELS:
            each = scaling.cost(model, 64, made, tokens=tokens, sharded=True)
            if each.fits:
                found["curves"][f"{model.name}, {network:g} GB/s"] = each.efficiency
        found |= {"rates": made._asdict(), "checks": checks(made, sources)}
    return found


def markdown(found: dict[str, Any]) -> str:
    """Return the tables of the guide."""
    parts = []
    for title, head, rows in [
        *((title, _HEAD, rows) for title, rows in found["tables"]),
        ("Measured and computed", _CHECK_HEAD, found["checks"]),
    ]:
        lines = [head, ["---"] * len(head), *rows]
        parts += [f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in lines), ""]
    return "\n".join(parts)


def checks(found: scaling.Rates, sources: dict[str, Any]) -> list[list[str]]:
    """Return the measured times and memory beside the computed ones."""
    shape, rows = gpt.SIZES["gpt2"], []
    for label in GROUPS:
        group = sources[label]
        count, made_by = group["count"], found._replace(flops=flops(group, found.copy))  # as that step was
        for name, sharded in (("purestep packed", False), ("purestep sharded", True)):
            measured = group["contestants"][f"{name}, {count}"]["seconds"]
            tokens = shape.rows * shape.context
            made = scaling.cost(as_model(), count, made_by, tokens=tokens, sharded=sharded)
            rows.append(_check(f"GPT-2, {name}, {count} GPUs, ms", 1e3 * measured, 1e3 * made.seconds, 2))
    large = sources[RANKS]["large"]
    on_eight = (sources[RANKS]["count"], Spread.of(large["times"][1:]).median, large["peak"])
    for count, seconds, memory in (BY_HAND, on_eight):
        made = scaling.cost(LARGE, count, found, tokens=LARGE.context, sharded=True)
        rows.append(
            _check(f"{LARGE.name}, purestep sharded, {count} GPUs, ms", 1e3 * seconds, 1e3 * made.seconds)
        )
        rows.append(_check("its peak memory, GB", memory / 1e9, made.memory / 1e9, 1))
    return rows


def _check(what: str, measured: float, computed: float, digits: int = 0) -> list[str]:
    return [what, f"{measured:.{digits}f}", f"{computed:.{digits}f}", f"{computed / measured:.2f}"]


def show(found: dict[str, Any]) -> str:
    """Write the tables."""
    measured = found["rates"]
    lines = [
        f"from records: {measured['flops'] / 1e12:.0f} TFLOP/s for loss and gradients, "
        f"{measured['copy'] / 1e12:.2f} TB/s for copies, {measured['link'] / 1e9:.0f} GB/s between GPUs",
        f"{found['tokens']} tokens on each GPU; efficiency, or the memory where it is more than the "
        f"{measured['memory'] / 1e9:.0f} GB of a GPU; r: each block is recomputed",
    ]
    for title, rows in found["tables"]:
        lines += ["", title, harness.table(_HEAD, rows)]
    lines += [
        "",
        harness.table(_CHECK_HEAD, found["checks"]),
    ]
    return "\n".join(lines)


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture."""
    bars = [Bar(name, Spread(100 * x, 100 * x, 100 * x)) for name, x in found["curves"].items()]
    title = "sharded, 64 GPUs, bfloat16 parameters, computed"
    return [Panel(title, "% efficiency, more is better", bars, 100 * PAYS, "pays")]


def missed(found: dict[str, Any]) -> list[str]:
    """Return nothing: there is no target."""
    return []
