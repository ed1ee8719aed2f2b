"""One run in two processes that die and come back, also as one process on other devices: what it learns is the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bitagent_jax.agent.state import build, init_state
from bitagent_jax.data.embeddings import write_embedding
from bitagent_jax.data.episodes import list_episodes, open_episodes, write_episode
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunFolder

FIELDS = {  # wide enough for matrices that fsdp splits
    "compute.fsdp": 2,
    "data.online_every": 0,
    "train.batch": 8,
    "train.checkpoint_every": 4,
    "train.log_every": 1,
    "train.stage1_steps": 20,
    "train.stage2_steps": 0,
    "world_model.deter": 128,
    "world_model.hidden": 128,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three embedded episodes of noise."""
    folder, encoder = tmp_path_factory.mktemp("data"), load_encoder()
    rng, rows = np.random.default_rng(0), 40
    for index in range(3):
        at = np.arange(rows)
        arrays = {
            "image": rng.integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8),
            "action": rng.uniform(-1, 1, (rows, 6)).astype(np.float32),
            "reward": np.zeros(rows, np.float32), "is_first": at == 0, "is_last": at == rows - 1,
        }  # fmt: skip
        write_episode(folder, arrays, {"label": "walk"}, name=str(index))
    for episode in open_episodes(list_episodes(folder))[0]:
        vectors = rng.normal(size=(rows, encoder.embed_dim))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        write_embedding(episode, encoder.fingerprint, vectors, np.arange(rows) >= 7)
    return folder


class Group:
    """The processes of one run; killed at the end of the ``with`` block, since JAX catches gentler signals."""

    def __init__(self, arguments, cache, processes: int, devices: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        env["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        if processes > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
        command = [sys.executable, "-m", "bitagent_jax", "train", *map(str, arguments)]
        self.processes = [
            subprocess.Popen(command, env=env | {"JAX_PROCESS_ID": str(index)}, stderr=subprocess.PIPE, text=True)
            for index in range(processes)
        ]

    def __enter__(self):
        return self

    def wait_until(self, condition, seconds=600):
        until = time.monotonic() + seconds
        while not condition():
            if any(process.poll() is not None for process in self.processes):
                self.end(None)
            assert time.monotonic() < until, "nothing happened"
            time.sleep(0.05)

    def end(self, status: int, seconds=600) -> None:
        """Wait for all; fails unless each ends with ``status``."""
        errors = [process.communicate(timeout=seconds)[1] for process in self.processes]
        assert [process.returncode for process in self.processes] == [status] * len(errors), "\n".join(errors)

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return {row["step"]: row for row in map(json.loads, lines)}


def read_params(folder):
    config = RunFolder.load(folder).config
    _, init = build(config, load_encoder().embed_dim, 6)
    return jax.tree.map(np.asarray, Checkpoints(folder / "checkpoints").restore(
        jax.eval_shape(lambda: init_state(config, init))).params)  # fmt: skip


def test_two_processes_die_and_come_back_on_other_devices(command, data, tmp_path):
    settings = command.settings(**{name.replace(".", "__"): value for name, value in FIELDS.items()},
                                data__folder=data)  # fmt: skip
    whole, folder, cache = tmp_path / "whole", tmp_path / "interrupted", tmp_path / "cache"
    with Group([whole, *settings, "--config.compute.fsdp=1"], cache, 1, 1) as one:
        one.end(0)

    checkpoints = Checkpoints(folder / "checkpoints")
    with Group([folder, *settings], cache, 2, 1) as two:
        two.wait_until(lambda: (checkpoints.latest_step() or 0) >= 4)
        for process in two.processes:
            process.send_signal(signal.SIGKILL)
    died = checkpoints.latest_step()
    assert 4 <= died < 20

    reached = max(rows(folder))  # what was logged after the last checkpoint is still there when the next ones start
    with Group([folder, *settings], cache, 2, 1) as two:  # only one of them is told to leave
        two.wait_until(lambda: max(rows(folder), default=0) > reached)
        two.processes[1].send_signal(signal.SIGTERM)
        two.end(143)
    assert died < checkpoints.latest_step() < 20

    with Group([folder, *settings], cache, 1, 4) as four:
        four.end(0)
    left, right = rows(whole), rows(folder)
    assert sorted(left) == sorted(right) == list(range(1, 21))
    for step, row in left.items():
        losses = {name: value for name, value in row.items() if name.startswith("loss/")}
        assert losses == pytest.approx({name: right[step][name] for name in losses}, rel=1e-3), step
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), read_params(whole), read_params(folder))
