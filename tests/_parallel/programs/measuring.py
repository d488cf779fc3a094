"""Peak memory of a rank that saves and restores a state of `sharded`, in bytes, as JSON."""

import json
import sys

import mlx.core as mx

import purestep as ps
from purestep._checkpoint.restoring import parts

GROUP = mx.distributed.init()
ARRAYS, SIZE = 10, 200_001
TRANSFORM = ps.optimizers.adam(0.1)
parts._TOGETHER = 1 << 20


def main():
    step = ps.sharded(lambda params, batch, rng: params["0"].sum(), TRANSFORM)

    def template():
        params = ps.packed({str(number): mx.ones(SIZE) for number in range(ARRAYS)})
        state = ps.TrainState.create(params, step.transform)
        opt_state = ps.tree.map(lambda leaf: leaf + 0, state.opt_state)  # no views of larger arrays
        mx.eval(params, opt_state)
        return state._replace(opt_state=opt_state)

    state = template()
    parameters = ARRAYS * SIZE * 4
    own = sum(leaf.nbytes for leaf in ps.tree.leaves(state))
    found = []

    def peak(work):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        result = work()
        found.append(mx.get_peak_memory() - before)
        return result

    with ps.checkpoint.Checkpointer(sys.argv[1]) as checkpointer:
        peak(lambda: (checkpointer.save(state, step=1), checkpointer.wait()))
        peak(lambda: checkpointer.restore(like=state))
    print(json.dumps([parameters, own, *found]))


if __name__ == "__main__":
    main()
