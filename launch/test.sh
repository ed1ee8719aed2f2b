#!/usr/bin/env bash
# Lint and tests on this machine: installs into .venv with the test extra, checks rendering, runs both.
# Usage: bash launch/test.sh [options of pytest]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_venv test
check_opengl
ruff check
exec python -m pytest "$@"
