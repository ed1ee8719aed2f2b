#!/usr/bin/env bash
# The main job on this machine: installs into .venv, checks rendering, then trains and evaluates walker
# from the sentences for stand, walk and run (2 CPU cores: README.md says how long). Run it again to resume.
# Usage: [DRY_RUN=1] bash launch/quickstart.sh [options of `bitagent quickstart`]
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_venv
check_opengl
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}" # huge pages: on CPUs a step takes a quarter less
run exec python -m bitagent_jax quickstart runs/quickstart "$@"
