"""The whole train step on one device, on eight, on a mesh of 2 x 4, and on an accelerator: the same losses."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from bitagent_jax.bench import program
from bitagent_jax.config import make_config
from bitagent_jax.training import sharding

SAME = """
import sys, jax, numpy as np
from bitagent_jax.bench import program
from bitagent_jax.config import make_config
from bitagent_jax.training import sharding

config = make_config("walker", "debug")
config.update_from_flattened_dict({
    "fusion.layers": 1, "imagination.horizon": 8, "imagination.stride": 4, "reward.window": 4,
    "task_imagination.segment": 8, "train.batch": 8, "train.length": 8,
    "world_model.deter": 128, "world_model.hidden": 128,  # wide enough for fsdp to split
    "world_model.free_nats": 0.0,  # at their kink rounding decides whether a gradient is there
    "optim.eps": 1e-3,  # else Adam makes whole steps of gradients that are nothing but rounding
})

def run(mesh):
    step = program.train_step(config, 2, "stage 2", mesh)  # with the losses of stage 1
    state, losses = step.init(), []
    shards = {leaf.addressable_shards[0].data.size < leaf.size for leaf in jax.tree.leaves(state.params)}
    assert shards == ({False, True} if mesh.shape["fsdp"] > 1 else {False})
    batch = program.random_batch(step)
    for _ in range(20):
        state, metrics = step.call(state, batch)
        losses.append({name: float(value) for name, value in metrics.items()})
    return losses, jax.tree.map(np.asarray, state.params)

losses, params = run(sharding.make_mesh(1, jax.devices()[:1]))
for fsdp in (1, 4):
    others, those = run(sharding.make_mesh(fsdp))
    far = max(float(np.max(np.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (params, those))))
    names = [name for name in losses[0] if name.startswith("loss/")]
    pairs = list(zip(losses, others, strict=True))
    off = [{name: abs(a[name] - b[name]) / (1e-2 + abs(a[name])) for name in names} for a, b in pairs]
    print(8 // fsdp, "x", fsdp, "parameters differ by", far, "losses by", [f"{max(step.values()):.0e}" for step in off])
    # Rounding alone: none at first, then what samples and alignments make of it that fall to the other side.
    assert far < 1e-3, far
    assert max(value for step in off[:5] for value in step.values()) < 1e-4, off[:5]
    assert max(value for step in off for value in step.values()) < 5e-2, off
"""


def test_meshes_of_eight_devices_learn_what_one_does():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, "-c", SAME], env=env, timeout=1800, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("vision", ["patch", "conv"])
def test_an_accelerator_computes_what_the_cpu_does(vision):
    if jax.default_backend() == "cpu":
        pytest.skip("needs an accelerator")
    config = make_config("walker", "debug")
    config.world_model.vision = vision

    def losses(device):
        step = program.train_step(config, 2, "stage 2", sharding.make_mesh(1, [device]))  # with the losses of stage 1
        _, metrics = step.call(step.init(), program.random_batch(step))
        return {name: np.asarray(value) for name, value in metrics.items() if name.startswith("loss/")}

    with jax.default_matmul_precision("float32"):
        near, far = losses(jax.devices("cpu")[0]), losses(jax.devices()[0])
    assert near.keys() == far.keys() and len(near) > 5
    for name, value in near.items():
        np.testing.assert_allclose(far[name], value, rtol=1e-3, atol=1e-3, err_msg=name)
