import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bitagent_jax import config as config_lib
from bitagent_jax.agent import state as state_lib
from bitagent_jax.training import sharding


@pytest.mark.parametrize(
    "path, shape, fsdp, expected",
    [
        ("params/world_model/cell/kernel", (256, 512), 4, P(None, "fsdp")),  # the largest axis
        ("params/world_model/cell/kernel", (512, 254), 4, P("fsdp", None)),  # the only divisible one
        ("params/world_model/conv/kernel", (4, 4, 48, 96), 8, P(None, None, None, "fsdp")),
        ("opt/actor/1/0/mu/layer/kernel", (256, 256), 2, P(None, "fsdp")),  # moments follow their parameter
        ("slow/critic/layer/kernel", (256, 256), 2, P(None, "fsdp")),
        ("params/world_model/cell/kernel", (255, 253), 2, P()),  # nothing divisible
        ("params/actor/head/kernel", (64, 12), 2, P()),  # small
        ("params/actor/head/kernel", (1024, 1024), 1, P()),  # fsdp off
        ("params/actor/head/bias", (2**16,), 2, P()),  # a vector
        ("opt/actor/1/0/count", (), 2, P()),
        ("norms/low", (), 2, P()),
        ("step", (), 2, P()),
        ("key", (), 2, P()),
    ],
)
def test_the_table_by_hand(path, shape, fsdp, expected):
    assert sharding.partition(path, shape, fsdp) == expected


def test_a_leaf_that_matches_no_rule_is_named():
    with pytest.raises(ValueError, match=r"'replay/image' of shape \(3, 4\) matches no rule"):
        sharding.partition("replay/image", (3, 4), 2)


def test_every_leaf_of_the_papers_state_matches_and_nearly_all_elements_split():
    config = config_lib.make_config("walker", "paper")
    _, init = state_lib.build(config, 64, 6)
    abstract = jax.eval_shape(lambda: state_lib.init_state(config, init))
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    names = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    split = sum(leaf.size for name, leaf in names if sharding.partition(name, leaf.shape, 8) != P())
    assert split > 0.99 * sum(leaf.size for _, leaf in names)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(ValueError, match="config.compute.fsdp=3 does not divide the 1 devices"):
        sharding.make_mesh(fsdp=3, devices=jax.devices()[:1])


def test_one_device_replicates_the_state_and_takes_any_batch():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = {"params": {"kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32)}}
    assert sharding.state_shardings(mesh, abstract)["params"]["kernel"].spec == P()
    sharding.check_batch(mesh, 7)


def test_a_lone_process_holds_every_row_of_a_batch():
    np.testing.assert_array_equal(sharding.local_rows(sharding.make_mesh(devices=jax.devices()[:1]), 5), range(5))


def test_processes_that_found_other_files_are_named(monkeypatch):
    sharding.check_same("episodes", ["a", "b"])
    gathered = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding.multihost_utils, "process_allgather", lambda one: gathered.append(one) or gathered)
    sharding.check_same("episodes", ["a", "b"])
    with pytest.raises(RuntimeError, match=r"processes \[1\] found other episodes"):
        sharding.check_same("episodes", ["a"])


def test_an_address_without_numbers_is_an_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "here:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ValueError, match="two whole numbers; got 'two' and ''"):
        sharding.initialize_distributed()


def test_without_variables_nothing_is_initialised(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "SLURM_PROCID", "BITAGENT_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    assert sharding.initialize_distributed() is False


EIGHT = """
import os, sys, jax, jax.numpy as jnp, numpy as np
from bitagent_jax.training import sharding

sharding.enable_compilation_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

def init():
    return {"params": {"kernel": jnp.linspace(-1, 1, 128 * 256).reshape(128, 256), "bias": jnp.ones(256)}}

def step(state, batch):
    def loss(params):
        return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["kernel"] + params["bias"])))
    grads = jax.grad(loss)(state["params"])
    return {"params": jax.tree.map(lambda p, g: p - g, state["params"], grads)}

abstract = jax.eval_shape(init)
batch = {"x": np.random.default_rng(0).normal(size=(16, 128)).astype(np.float32)}

def run(mesh):
    shardings = sharding.state_shardings(mesh, abstract)
    state = jax.jit(init, out_shardings=shardings)()
    placed = sharding.place(mesh, batch)
    assert placed["x"].sharding == sharding.batch_sharding(mesh)
    update = jax.jit(step, in_shardings=(shardings, sharding.batch_sharding(mesh)), out_shardings=shardings,
                     donate_argnums=0)
    for _ in range(3):
        state = update(state, placed)
    return state, placed

one, _ = run(sharding.make_mesh(devices=jax.devices()[:1]))
for fsdp in (1, 2, 8):
    mesh = sharding.make_mesh(fsdp)
    assert dict(mesh.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    many, placed = run(mesh)
    assert len(placed["x"].addressable_shards) == 8 and placed["x"].addressable_shards[0].data.shape == (2, 128)
    shard = many["params"]["kernel"].addressable_shards[0].data.shape
    assert shard == (128, 256 // fsdp), shard
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(many["params"][name], one["params"][name], atol=1e-6)
for bad, near in ((12, "8 or 16"), (3, "use 8")):
    try:
        sharding.check_batch(mesh, bad)
    except ValueError as error:
        assert f"config.train.batch={bad} is not divisible by the 8 devices" in str(error)
        assert near in str(error), error
    else:
        raise AssertionError("no error")
sharding.check_batch(mesh, 16)
assert os.listdir(sys.argv[1]), "nothing was cached"
"""


@pytest.mark.parametrize("shared, expected", [("", "run/cache"), ("all/cache", "all/cache")])
def test_compiled_programs_are_kept_in_the_run_or_where_the_variable_says(monkeypatch, shared, expected):
    told = {}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", shared)
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    sharding.enable_compilation_cache("run/cache")
    assert told["jax_compilation_cache_dir"] == expected and told["jax_persistent_cache_min_compile_time_secs"] < 1


def test_eight_devices_compute_what_one_does(tmp_path):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", EIGHT, str(tmp_path)], env=env, timeout=60, check=True)


TWO = """
import sys, jax, numpy as np
from bitagent_jax.training.metrics import Metrics
from bitagent_jax.training import sharding
assert sharding.initialize_distributed()
assert jax.process_count() == 2
mesh = sharding.make_mesh()
mine = sharding.local_rows(mesh, 6)
assert mine.tolist() == [[0, 1, 2], [3, 4, 5]][jax.process_index()], mine
rows = np.full((3, 2), jax.process_index(), np.float32)
batch = sharding.place(mesh, {"x": rows})["x"]
assert batch.shape == (6, 2)
total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))(batch).block_until_ready()
with Metrics(sys.argv[1]) as metrics:
    metrics.scalars(1, {"total": total})
print("total", float(total))
"""


def test_two_processes_place_one_batch_and_one_of_them_reports(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path)],
            env=env | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        answers = [worker.communicate(timeout=60)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert ["total 6.0" in answer for answer in answers] == [True, True]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "total": 6.0}\n'
