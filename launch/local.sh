#!/usr/bin/env bash
# Training on this machine: one process on all devices, or PROCESSES=N processes with one GPU (or the CPU) each.
# Usage: [PROCESSES=N] bash launch/local.sh runs/walker --config=experiments/configs/walker.py:paper
# Paths are relative to the repository's root.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_venv
check_opengl
processes=${PROCESSES:-1}
if [ "$processes" -le 1 ]; then exec python -m bitagent_jax train "$@"; fi

export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-9531}" JAX_NUM_PROCESSES="$processes"
pids=()
# -9: once processes are joined, JAX catches SIGTERM, and the partners of a dead process wait forever.
trap 'kill -9 "${pids[@]}" 2>/dev/null || true' EXIT
for ((index = 0; index < processes; index++)); do
  JAX_PROCESS_ID=$index CUDA_VISIBLE_DEVICES=$index python -m bitagent_jax train "$@" &
  pids+=($!)
done
for _ in "${pids[@]}"; do wait -n; done
