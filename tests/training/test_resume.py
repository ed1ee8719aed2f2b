"""A run that is stopped and started again ends where an uninterrupted one ends, bit for bit."""

import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from bitagent_jax.agent.state import build, init_state
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunFolder


def read_state(folder):
    config = RunFolder.load(folder).config
    _, init = build(config, load_encoder().embed_dim, 6)
    state = Checkpoints(folder / "checkpoints").restore(jax.eval_shape(lambda: init_state(config, init)))
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def wait_for(condition, process, seconds=400):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def rows(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_sigterm_and_kill_9_change_nothing(command, trained, tmp_path):
    whole, folder = trained[0], tmp_path / "interrupted"
    shutil.copytree(whole / "episodes", folder / "episodes")
    arguments = ("train", folder, *command.settings())

    process = command.start(*arguments)
    wait_for(lambda: (folder / "checkpoints" / "10" / "digest.json").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and "SIGTERM: saving and leaving" in err
    stopped = Checkpoints(folder / "checkpoints").latest_step()
    assert 10 <= stopped <= 60 and rows(folder)[-1]["step"] >= stopped

    process = command.start("train", folder)  # a known run needs no config
    wait_for(lambda: (Checkpoints(folder / "checkpoints").latest_step() or 0) >= 30, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert 30 <= Checkpoints(folder / "checkpoints").latest_step() <= 60

    command.run(*arguments)
    left, right = read_state(whole), read_state(folder)
    assert int(left.step) == int(right.step) == 60
    different = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: a.tobytes() != b.tobytes(), left, right))
    assert not [jax.tree_util.keystr(path) for path, wrong in different if wrong]

    online = [sorted(file.name for file in (run / "online").glob("*.ep")) for run in (whole, folder)]
    assert online[0] == online[1] and len(online[0]) == 2  # at steps 20 and 40
    same = ("step", "stage", "loss/kl", "loss/reconstruction", "imagined/reward")
    pick = lambda run: {row["step"]: {name: row.get(name) for name in same} for row in rows(run)}  # noqa: E731
    assert {step: pick(folder)[step] for step in pick(whole)} == pick(whole)


@pytest.mark.slow
def test_behaviour_from_stored_latents_goes_on_as_if_it_had_not_stopped(command, trained, tmp_path):
    folder = tmp_path / "whole"
    shutil.copytree(trained[0] / "episodes", folder / "episodes")
    arguments = command.settings(
        "debug,frozen_world_model", train__video_every=20, data__online_every=50, behavior__regression=1.0
    )
    command.run("train", folder, *arguments)  # with films of pictures, although the batches of stage 2 hold none
    whole = read_state(folder)
    shutil.rmtree(folder / "checkpoints" / "60")
    command.run("train", folder)
    again = read_state(folder)
    assert int(again.step) == 60
    different = jax.tree.map(lambda a, b: a.tobytes() != b.tobytes(), whole, again)
    assert not any(jax.tree.leaves(different))
