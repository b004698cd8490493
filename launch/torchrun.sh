#!/usr/bin/env bash
# torchrun in place of accelerate launch: it starts all ranks anew when one of them dies, and they resume. From the root of
# the repository, with the environment active:
#   launch/torchrun.sh zero2 config.yaml out=DIR data.train=PACKED              # all GPUs of this machine
#   NODES=2 MASTER=node0:29500 launch/torchrun.sh zero2 config.yaml out=DIR ... # the same on each of two machines
# GPUS, processes on this machine, and RESTARTS can be set as well. MASTER is one of the machines, under a name that it
# knows as its own.

set -euo pipefail
strategy=${1:?usage: launch/torchrun.sh STRATEGY CONFIG out=DIR [KEY=VALUE ...]}
shift
source launch/strategy.sh "$strategy"

# torchrun's options as variables, so that a version without one of them starts all the same. By default SIGUSR1 would kill
# torchrun itself and leave the ranks behind.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=120 # seconds that ranks have for their checkpoint
# By default ranks that are started anew meet in the store of those that died, where they may find their dead addresses
# (torch 2.13: connection refused after a restart).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NODES:-1}" --nproc-per-node="${GPUS:-gpu}" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="${MASTER:-localhost:0}" --rdzv-id="${RUN_ID:-essa}" \
    -m essa_dist adapt "$@" resume=true
