# shellcheck shell=bash
# Sourced by the other scripts: goes to the repository's root and defines make_venv, check_opengl and run.
set -euo pipefail && cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "error: $*" >&2; exit 1; }
run() { if [ "${DRY_RUN:-}" ]; then printf '%s\n' "${*@Q}"; else "$@"; fi; } # DRY_RUN=1 only prints

make_venv() { # $1: an extra of setup.cfg to install too, for example "test"; PIP names more packages
  if [ "${DRY_RUN:-}" ]; then return; fi
  exec 9>.venv.lock && if command -v flock >/dev/null; then flock 9; fi # of several jobs on a shared tree, one installs
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    local check='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' name python=
    local names=${PYTHON:-python3.12 python3.13 python3.11 python3} hint="on Debian or Ubuntu: apt-get install python3-venv"
    for name in $names; do if "$name" -c "$check" 2>/dev/null; then python=$name && break; fi; done
    [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 that can make a virtual environment (tried $names; $hint)"
    echo "making .venv with $("$python" --version)" && "$python" -m venv --clear .venv
  fi
  PATH="$PWD/.venv/bin:$PATH"
  local stamp=".venv/installed-${1:-base}${PIP:+-$PIP}" log=.venv/install.log
  if ! [[ "$stamp" -nt setup.cfg && "$stamp" -nt pyproject.toml ]]; then
    echo "installing the package and what it needs into .venv"
    local pip="python -m pip install --disable-pip-version-check" also=true
    python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || # setup.cfg says why
      also="$pip --no-deps $(grep -om1 'dm-control==[0-9.]*' setup.cfg)"
    # shellcheck disable=SC2086 # words on purpose
    { $pip -e ".${1:+[$1]}" ${PIP:-} && $also && touch "$stamp"; } >"$log" 2>&1 ||
      { tail -n 40 "$log" >&2; fail "pip failed; its whole output is in $log"; }
  fi
  exec 9>&-
}

check_opengl() { # renders one image; if that fails, root on Debian or Ubuntu gets the packages, others the command
  local log=.venv/opengl.log fix="apt-get install -y --no-install-recommends libegl1 libopengl0 libgl1-mesa-dri"
  local render='from bitagent_jax.envs.dmc import make_env; make_env("walker_walk").reset()'
  if [ "${DRY_RUN:-}" ] || python -c "$render" >"$log" 2>&1; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "headless OpenGL is missing: $fix"; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive $fix; } >.venv/apt.log 2>&1 || tail -n 20 .venv/apt.log >&2
    if python -c "$render" >"$log" 2>&1; then return; fi
  fi
  tail -n 5 "$log" >&2; echo "dm_control cannot render here. On Debian or Ubuntu: sudo apt-get update && sudo $fix" >&2; return 1
}
