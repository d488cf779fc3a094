"""Steps of a watched group in which one rank goes wrong."""

import os
import signal
import sys
import time

import mlx.core as mx

import purestep as ps

FAULT, ILL, TIMEOUT = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
group = mx.distributed.init()


def go_wrong():
    if FAULT in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if FAULT == "kill" else signal.SIGSTOP)
    if FAULT == "exit":
        os._exit(0)
    if FAULT == "hang":
        time.sleep(1000)
    if FAULT == "error":
        raise ValueError("no more rows")
    if FAULT == "leave":
        sys.exit(0)


if FAULT == "absent" and group.rank() == ILL:
    time.sleep(1000)
with ps.parallel.watchdog(timeout=TIMEOUT) as dog:
    for step in range(6):
        if step == 3 and group.rank() == ILL:
            if FAULT == "early":
                break
            go_wrong()
        dog.beat()
        mx.eval(mx.distributed.all_sum(mx.ones(4)))
print("finished", flush=True)
