#!/usr/bin/env bash
# Train with torchrun on one machine or on several.
#
#   launch/torchrun.sh STAGES [OPTIONS OF alrpc.worker]
#
# STAGES is the number of stages on this machine. Node 0 runs the coordinator as well. On several machines, start it on each
# with
#
#   NODES=2           number of machines
#   NODE_RANK=0       this machine's number, from 0
#   MASTER=10.0.0.1   address of node 0, on a private network: what is sent is not encrypted (see SECURITY.md)
#   ALRPC_SECRET=...  a secret of the run, the same on each machine, such as `openssl rand -hex 32` prints; or
#   ALRPC_SECRET_FILE=FILE   a file in a directory that the machines share; the first process makes it
#   PORT=29500        a free port of node 0 (default 29500)
#   RESTARTS=0        how often the run goes on by itself from its last checkpoint; needs --out (default 0)
#   WAIT=120          seconds in which all machines must have begun (default 120)
#   INTERFACE=eth0    network interface to use (default: the one that leads to MASTER)
#
# For example, three stages on two machines, with an own configuration:
#
#   export ALRPC_SECRET=...                                                        # on both
#   NODES=2 NODE_RANK=0 MASTER=10.0.0.1 launch/torchrun.sh 1 --config run.yaml     # on 10.0.0.1
#   NODES=2 NODE_RANK=1 MASTER=10.0.0.1 launch/torchrun.sh 2                       # on the other
set -euo pipefail

if [[ ! ${1:-} =~ ^[0-9]+$ ]]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
stages=$1
shift

nodes=${NODES:-1}
node_rank=${NODE_RANK:-0}
processes=$((stages + (node_rank == 0 ? 1 : 0)))
if ((processes == 0)); then
    echo "launch/torchrun.sh: node $node_rank has no stage; give at least 1 (node 0 may have 0: the coordinator alone)" >&2
    exit 2
fi
if ((nodes > 1)) && [[ -z ${MASTER:-} ]]; then
    echo "launch/torchrun.sh: MASTER is not set; give the address of node 0" >&2
    exit 2
fi

if ((nodes > 1)) && [[ -z ${ALRPC_SECRET:-}${ALRPC_SECRET_FILE:-} ]]; then
    echo "launch/torchrun.sh: ALRPC_SECRET is not set; give the same secret on each machine, such as openssl rand -hex 32 prints," \
        "or ALRPC_SECRET_FILE=FILE in a directory that all machines share" >&2
    exit 2
fi

export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # memory in large pages, as alrpc launch has it
interface=${INTERFACE:-}
if ((nodes == 1)); then
    interface=${interface:-lo}
fi
if [[ -n $interface ]]; then
    export GLOO_SOCKET_IFNAME=$interface TP_SOCKET_IFNAME=$interface NCCL_SOCKET_IFNAME=$interface
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONUTF8=1 # whatever the locale says, as alrpc launch has it

# nohup, or a shell in the background, ignores some signals; torchrun would end the run by them nevertheless.
signals=SIGTERM
for signal in SIGINT SIGHUP SIGQUIT; do
    [[ -n $(trap -p "$signal") ]] || signals+=,$signal
done
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-$signals} # its option --signals-to-handle

exec python3 -m alrpc.runtime.torchrun --nnodes "$nodes" --node-rank "$node_rank" --nproc-per-node "$processes" \
    --max-restarts "${RESTARTS:-0}" --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --rdzv-conf "timeout=${WAIT:-120}" \
    -m alrpc.worker "$@"
