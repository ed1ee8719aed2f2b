"""What the tests of whole runs share: the command line as another process, and one small trained run."""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

# Compiling takes longer than running models this small: leave most of XLA's optimisations out, here and below, and
# its newer emitters, which take a third of that time and cannot be left out of later versions.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.11" else ""
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")  # what several processes compile, once

ROOT = Path(__file__).parent.parent
WALKER = ROOT / "experiments" / "configs" / "walker.py"
SMALL = {
    "data.online_every": 20,
    "data.online_episodes": 1,
    "fusion.layers": 1,
    "imagination.horizon": 8,
    "imagination.stride": 4,
    "reward.window": 4,
    "task_imagination.segment": 8,
    "train.checkpoint_every": 10,
    "train.length": 8,
    "train.stage1_steps": 40,
    "train.stage2_steps": 20,
}


def settings(names: str = "debug", **fields) -> list[str]:
    """Return the options ``--config=...`` of a small walker run; ``train__length=16`` sets config.train.length."""
    values = SMALL | {name.replace("__", "."): value for name, value in fields.items()}
    return [f"--config={WALKER}:{names}", *(f"--config.{name}={value}" for name, value in values.items())]


def start(*args, devices: int = 1) -> subprocess.Popen:
    """Start ``python -m bitagent_jax ARGS`` with its output in pipes."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    env["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    command = [sys.executable, "-m", "bitagent_jax", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*args, code: int = 0, devices: int = 1) -> tuple[str, str]:
    """Run it to its end and return (stdout, stderr); fails unless it ends with ``code``."""
    process = start(*args, devices=devices)
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == code, f"{args} ended with {process.returncode}:\n{out}\n{err}"
    return out, err


@pytest.fixture(scope="session")
def command():
    """The command line: ``command.run``, ``command.start`` and ``command.settings``."""
    return SimpleNamespace(run=run, start=start, settings=settings, ROOT=ROOT, WALKER=WALKER, SMALL=SMALL)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train a small run of 40 + 20 steps with online collection; returns (folder, stdout, stderr).

    Its episode folder holds a corrupt file from the start.
    """
    folder = tmp_path_factory.mktemp("runs") / "small"
    (folder / "episodes").mkdir(parents=True)
    (folder / "episodes" / "broken.ep").write_bytes(b"BiTrows1 not a table")
    return folder, *run("train", folder, *settings())
