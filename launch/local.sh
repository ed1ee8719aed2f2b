#!/usr/bin/env bash
# Training on this machine: one process on all devices, or PROCESSES=N processes with one GPU (or the CPU) each,
# of those in CUDA_VISIBLE_DEVICES where it is set.
# Usage: [DRY_RUN=1] [PROCESSES=N] bash launch/local.sh runs/walker --config=experiments/configs/walker.py:paper
# Paths are relative to the repository's root.
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_venv
check_opengl || echo "going on: training from data.folder renders nothing" >&2
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}" # huge pages: on CPUs a step takes a quarter less
processes=${PROCESSES:-1}
if [ "$processes" -le 1 ]; then run exec python -m bitagent_jax train "$@"; exit; fi

export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-9531}" JAX_NUM_PROCESSES="$processes"
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((processes - 1)))}"
[ "${#gpus[@]}" -ge "$processes" ] || fail "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES are fewer than PROCESSES=$processes"
pids=()
# Told to leave, all save together. Whatever ends this script, -9 ends them: once processes are joined, JAX catches
# SIGTERM, and the partners of a dead process wait for it.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
trap 'kill -9 "${pids[@]}" 2>/dev/null || true' EXIT
for ((index = 0; index < processes; index++)); do
  run exec env JAX_PROCESS_ID=$index CUDA_VISIBLE_DEVICES="${gpus[index]}" python -m bitagent_jax train "$@" &
  pids+=($!)
done
status=0
while code=0; wait -n || code=$?; [ "$code" != 127 ]; do # 127: none is left
  if [ "$code" != 0 ]; then status=$code; fi
  case $code in 0 | 130 | 143) ;; *) break ;; esac # a signal to this script, or processes that have saved and left
done
exit "$status"
