"""A contestant in one of several processes: `python -m benchmarks.peers.in_ranks '{...}'` prints JSON."""

import importlib
import json
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.workloads import gpt


def purestep(shape: gpt.Shape, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a driver of purestep, and the bytes of the optimizer state of this rank."""
    import mlx.core as mx

    import purestep as ps
    from benchmarks.peers import with_purestep

    ps.hardware.configure_cuda()
    group = mx.distributed.init()
    rank, size = group.rank(), group.size()

    class Driver(with_purestep.Step):
        def __init__(self) -> None:
            super().__init__(shape, 1)
            reduce = {"reduce_dtype": mx.bfloat16} if "bfloat16" in name else {}
            builder: Any = ps.sharded if "sharded" in name else ps.data_parallel
            step = builder(self._loss_fn, self._transform, **reduce)
            params = ps.unpacked(self._state.params)
            params = params if "leaves" in name else ps.packed(params)
            self._state = ps.TrainState.create(params, step.transform)
            self._step = ps.compiled(step)
            whole = [[mx.array(half) for half in pair] for pair in gpt.batches(shape, size)]
            rows = slice(rank * shape.rows, (rank + 1) * shape.rows)
            self._batches = [{"inputs": pair[0][rows], "targets": pair[1][rows]} for pair in whole]
            mx.eval(self._state, self._batches)

    driver = Driver()
    state = sum(leaf.nbytes for leaf in ps.tree.leaves(driver._state.opt_state))
    return driver, {"state": state, "rank": rank, "size": size, "device": ps.hardware.device().name}


def on_torch(shape: gpt.Shape, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a driver of torch with DistributedDataParallel."""
    from benchmarks.peers import with_torch

    torch: Any = importlib.import_module("torch")
    parallel: Any = importlib.import_module("torch.nn.parallel")

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    class Driver(with_torch.Step):
        def __init__(self) -> None:
            super().__init__(shape, 1, compiled=False)
            model: Any = self._model
            if size > 1:
                model = parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            self._model = torch.compile(model)
            rows = slice(rank * shape.rows, (rank + 1) * shape.rows)
            self._batches = [
                [[torch.from_numpy(half[rows]).long().to(self._device) for half in pair]]
                for pair in gpt.batches(shape, size)
            ]

    return Driver(), {"state": None, "rank": rank, "size": size, "device": "torch"}


def all_reduce(shape: gpt.Shape, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a driver that sums one float32 vector of the size of the model."""
    import mlx.core as mx

    from benchmarks.peers.with_mlx import OnMLX

    group = mx.distributed.init()
    vector = mx.ones(gpt.parameters(shape))
    mx.eval(vector)

    class Driver(OnMLX):
        def start(self) -> Any:
            found = mx.distributed.all_sum(vector, group=group)
            mx.async_eval(found)
            return [found]

        def read(self, started: Any) -> list[float]:
            return [started[0][0].item()]

    return Driver(), {"state": None, "rank": group.rank(), "size": group.size(), "device": "mlx"}


def main() -> None:
    """Build the contestant, time it and print what rank 0 found."""
    task = json.loads(sys.argv[1])
    shape = gpt.Shape(*task["shape"])
    build = {"purestep": purestep, "torch": on_torch, "all-reduce": all_reduce}[task["name"].split()[0]]
    driver, facts = build(shape, task["name"])
    begin = time.perf_counter()
    first = driver.first(3)
    facts["first"] = time.perf_counter() - begin
    times = [driver.seconds(task["steps"]) / task["steps"] for _ in range(task["rounds"])]
    facts |= {"metrics": first["metrics"], "times": times, "seconds": statistics.median(times)}
    facts["peak"] = driver.peak(task["steps"])
    if facts["rank"] == 0:
        print("\n" + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
