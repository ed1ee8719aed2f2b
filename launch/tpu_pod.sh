#!/usr/bin/env bash
# Training on all workers of a Cloud TPU slice: copies this commit to them, installs, starts the same program on each.
# Usage: TPU=name ZONE=zone [DRY_RUN=1] bash launch/tpu_pod.sh /mnt/shared/walker --config=experiments/configs/walker.py:paper
# The run folder has to be a folder that every worker mounts (Filestore; in a bucket, renaming
# a folder, by which checkpoints appear, is not one step). The same command
# resumes; STOP=1 instead of the run saves and stops it.
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ "${TPU:-}" ] && [ "${ZONE:-}" ] || fail "name the slice: TPU=name ZONE=zone bash launch/tpu_pod.sh RUN ..."
gcloud=(gcloud compute tpus tpu-vm)
where=(--zone="$ZONE" --worker=all)

if [ "${STOP:-}" ]; then
  # shellcheck disable=SC2016 # expanded by the workers
  run "${gcloud[@]}" ssh "$TPU" "${where[@]}" --command='kill -TERM "$(cat bitagent.pid)"'
  exit
fi
[ $# -gt 0 ] || fail "which run? For example /mnt/shared/walker --config=experiments/configs/walker.py:paper"
archive=$(mktemp -d)/bitagent_jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
run git archive --output="$archive" HEAD
run "${gcloud[@]}" scp "$archive" "$TPU": "${where[@]}"

# Detached, so that a lost connection does not end it; each worker's output is in bitagent.log there.
remote="set -e; mkdir -p bitagent_jax; tar -xzf bitagent_jax.tar.gz -C bitagent_jax; cd bitagent_jax;"
remote+=" export PIP='jax[tpu]' BITAGENT_DISTRIBUTED=1; source launch/setup.sh; make_venv; check_opengl || true;"
remote+=" nohup python -m bitagent_jax train $(printf '%q ' "$@")>>../bitagent.log 2>&1 </dev/null &"
remote+=" echo \$! >../bitagent.pid; sleep 20; tail -n 5 ../bitagent.log; kill -0 \$!"
run "${gcloud[@]}" ssh "$TPU" "${where[@]}" --command="$remote"
