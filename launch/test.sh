#!/usr/bin/env bash
# Lint and tests on this machine: installs into .venv with the test extra, checks rendering, runs both.
# Usage: [DRY_RUN=1] bash launch/test.sh [options of pytest]
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_venv test
check_opengl
run ruff check
run exec python -m pytest -n 2 --dist worksteal "$@"
