# Sourced by the other scripts: goes to the repository's root and defines make_venv and check_opengl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 1; }

make_venv() { # $1: an extra of setup.cfg to install too, for example "test"
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    local check='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' name python=
    for name in ${PYTHON:-python3.12 python3.13 python3.11 python3}; do
      if "$name" -c "$check" 2>/dev/null; then python=$name && break; fi
    done
    [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 that can make a virtual environment" \
      "(tried ${PYTHON:-python3.12 python3.13 python3.11 python3}; on Debian or Ubuntu: apt-get install python3-venv)"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
  fi
  PATH="$PWD/.venv/bin:$PATH"
  local stamp=".venv/installed-${1:-base}" log=.venv/install.log
  if [ "$stamp" -nt setup.cfg ] && [ "$stamp" -nt pyproject.toml ]; then return; fi
  echo "installing the package and what it needs into .venv"
  local pip="python -m pip install --disable-pip-version-check" also=true
  python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || # setup.cfg says why
    also="$pip --no-deps $(grep -om1 'dm-control==[0-9.]*' setup.cfg)"
  { $pip -e ".${1:+[$1]}" && $also; } >"$log" 2>&1 ||
    { tail -n 40 "$log" >&2; fail "pip failed; its whole output is in $log"; }
  touch "$stamp"
}

check_opengl() { # renders one image; if that fails, root on Debian or Ubuntu gets the packages, others the command
  local fix="apt-get install -y --no-install-recommends libegl1 libopengl0 libgl1-mesa-dri" log=.venv/opengl.log
  local render='from bitagent_jax.envs.dmc import make_env; make_env("walker_walk").reset()'
  python -c "$render" >"$log" 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "headless OpenGL is missing: $fix"
    { apt-get update && DEBIAN_FRONTEND=noninteractive $fix; } >.venv/apt.log 2>&1 || tail -n 20 .venv/apt.log >&2
    python -c "$render" >"$log" 2>&1 && return
  fi
  tail -n 5 "$log" >&2
  fail "dm_control cannot render here. On Debian or Ubuntu: sudo apt-get update && sudo $fix"
}
