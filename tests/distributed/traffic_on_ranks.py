"""Run by test_traffic.py on several ranks: what a TrafficMeter says of each operation, beside what the loopback carried."""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from essa_dist.distributed.traffic import TrafficMeter

CPU = torch.device("cpu")
N = 600_000  # a multiple of 2 and 3


def loopback() -> int:
    """Bytes that the loopback interface has sent, headers included."""
    (line,) = (row for row in Path("/proc/net/dev").read_text().splitlines() if row.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    n, x = dist.get_world_size(), torch.ones(N)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(600, 1000, bias=False))
    half = x.bfloat16()
    operations = {
        "ddp": lambda: model(torch.ones(4, 600)).sum().backward(),
        "all_reduce": lambda: dist.all_reduce(x.clone()),
        "all_reduce in bf16": lambda: dist.all_reduce(half.clone()),
        "all_gather": lambda: dist.all_gather([torch.empty(N) for _ in range(n)], x),
        "all_gather_base": lambda: dist.all_gather_into_tensor(torch.empty(N * n), x),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(torch.empty(N // n), x),
        "broadcast": lambda: dist.broadcast(x, 0),
        "reduce": lambda: dist.reduce(x.clone(), 0),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty(N), x),
        "nothing": lambda: None,
    }
    operations["ddp"]()  # DDP sorts its buckets after the first step
    operations["ddp"]()
    found = {}
    for name, operation in operations.items():
        dist.barrier()
        time.sleep(0.05)  # the barrier's last words
        before = loopback()
        dist.barrier()
        with TrafficMeter(CPU) as meter:
            operation()
        assert meter.traffic is not None
        own = meter.traffic
        dist.barrier()
        time.sleep(0.05)
        carried = loopback() - before
        sent = torch.tensor([own.sent])
        dist.all_reduce(sent)
        found[name] = {"sent": int(sent), "carried": carried, "calls": own.calls, "seconds": own.seconds}
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
