"""Steps of a watched group in which one rank goes wrong."""

import os
import signal
import sys
import time

import mlx.core as mx

import purestep as ps

FAULT, ILL, TIMEOUT = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if FAULT == "kill":  # the numbers of new files are then larger than select.select takes
    FILES = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
group = mx.distributed.init()


def go_wrong():
    if FAULT != "none":
        print(time.time(), flush=True)
    if FAULT in ("kill", "stop", "lost"):
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
if FAULT == "gone" and group.rank() == ILL:
    os._exit(0)
if FAULT not in ("absent", "gone"):
    mx.eval(mx.distributed.all_sum(mx.ones(4)))  # processes start at different speeds
with ps.parallel.watchdog(timeout=TIMEOUT) as dog:
    for step in range(6):
        if step == 3 and group.rank() == ILL:
            if FAULT == "early":
                break
            go_wrong()
        if FAULT == "lost" and step == 3:  # as the ring says it, before rank 0 has noticed
            raise RuntimeError("[ring] connection to a peer was lost")
        dog.beat()
        mx.eval(mx.distributed.all_sum(mx.ones(4)))
print("finished", flush=True)
