import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitagent_jax.training.checkpoint import CheckpointError, Checkpoints


class State(NamedTuple):
    step: jax.Array
    key: jax.Array
    params: dict
    opt: tuple


def make_state(seed=0, width=128):
    key = jax.random.key(seed)
    params = {"net": {"kernel": jax.random.normal(key, (width, 128)), "bias": jnp.arange(8.0)}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), jax.random.fold_in(key, 1), params, tx.init(params))


def abstract(width=128):
    return jax.eval_shape(lambda: make_state(width=width))


def numbers(state):
    return jax.tree.map(
        lambda leaf: np.asarray(jax.random.key_data(leaf) if leaf.dtype == state.key.dtype else leaf).tobytes(),
        state,
    )


def write(folder, steps, keep=3):
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step))


def biggest(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_a_whole_state_comes_back_bit_for_bit_with_its_types(tmp_path):
    write(tmp_path / "c", [5])
    restored = Checkpoints(tmp_path / "c").restore(abstract())
    assert numbers(restored) == numbers(make_state(5))
    assert isinstance(restored, State) and restored.key.dtype == jax.random.key(0).dtype
    assert isinstance(restored.opt[1][0], optax.ScaleByAdamState)


def test_only_the_last_keep_remain_and_steps_are_listed(tmp_path):
    write(tmp_path, [10, 20, 30, 40], keep=2)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [30, 40] and checkpoints.latest_step() == 40
    assert int(checkpoints.restore(abstract(), 30).step) == 30


def test_a_state_donated_right_after_save_is_saved_as_it_was(tmp_path):
    update = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = {"w": jnp.zeros((512, 1024))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(10):
            state = update(state)
    restored = Checkpoints(tmp_path).restore({"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32)})
    assert not np.any(restored["w"])


def test_signal_handlers_stay_as_they_were(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    write(tmp_path, [1])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_no_checkpoint_names_the_folder_and_creates_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path / 'none'}"):
        Checkpoints(tmp_path / "none").restore(abstract())
    assert Checkpoints(tmp_path / "none").latest_step() is None
    assert not (tmp_path / "none").exists()


def test_an_absent_step_names_those_there_are(tmp_path):
    write(tmp_path, [1, 2])
    with pytest.raises(CheckpointError, match=r"step 3 .*holds \[1, 2\]"):
        Checkpoints(tmp_path).restore(abstract(), 3)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="config.train.keep=0"):
        Checkpoints(tmp_path, keep=0)


def truncate(step):
    file = biggest(step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_one_bit(step):
    file = biggest(step / "state" / "ocdbt.process_0")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def delete_data(step):
    biggest(step).unlink()


def empty_folder(step):
    shutil.rmtree(step)
    step.mkdir()


def break_metadata(step):
    (step / "state" / "_METADATA").write_text("{")


def break_digest(step):
    (step / "digest.json").write_text("")


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, delete_data, empty_folder, break_metadata, break_digest])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    write(tmp_path, [10, 20])
    damage(tmp_path / "20")
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.WARNING):
        restored = Checkpoints(tmp_path).restore(abstract())
    assert numbers(restored) == numbers(make_state(10))
    assert f"checkpoint {tmp_path / '20'} is damaged" in caplog.text
    with pytest.raises(CheckpointError, match=f"{tmp_path / '20'}; the newest usable one is step 10"):
        Checkpoints(tmp_path).restore(abstract(), 20)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops tasks on damage
@pytest.mark.parametrize("damage", [truncate, break_metadata])
def test_damage_is_found_without_a_digest_too(tmp_path, damage, caplog):
    write(tmp_path, [10, 20])
    (tmp_path / "20" / "digest.json").unlink()  # as if killed between Orbax's commit and the digest
    damage(tmp_path / "20")
    assert int(Checkpoints(tmp_path).restore(abstract()).step) == 10
    assert str(tmp_path / "20") in caplog.text


def test_nothing_usable_names_every_checkpoint(tmp_path):
    write(tmp_path, [10, 20])
    truncate(tmp_path / "10")
    truncate(tmp_path / "20")
    with pytest.raises(CheckpointError, match=f"{tmp_path / '10'}, {tmp_path / '20'}; no other one is usable"):
        Checkpoints(tmp_path).restore(abstract())


def test_another_models_checkpoint_is_an_error_not_damage(tmp_path):
    write(tmp_path, [10, 20])
    with pytest.raises(CheckpointError, match=r"20 does not fit[^$]*params/net/kernel: stored \(\(128, 128\)"):
        Checkpoints(tmp_path).restore(abstract(width=64))
    with pytest.raises(CheckpointError, match="params/net/scale: stored None"):
        Checkpoints(tmp_path).restore_part({"params": {"net": {"scale": abstract().params["net"]["bias"]}}})
    with pytest.raises(CheckpointError, match=r"opt/1/0/count: stored .*, wanted None"):
        Checkpoints(tmp_path).restore({"params": abstract().params})


def test_a_part_is_read_alone(tmp_path):
    write(tmp_path, [10])
    part = Checkpoints(tmp_path).restore_part({"params": {"net": {"bias": abstract().params["net"]["bias"]}}})
    assert part.keys() == {"params"} and part["params"]["net"].keys() == {"bias"}
    np.testing.assert_array_equal(part["params"]["net"]["bias"], np.arange(8.0))


def test_going_back_sets_later_checkpoints_aside(tmp_path):
    write(tmp_path, [10, 20, 30])
    truncate(tmp_path / "30")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state = checkpoints.restore(abstract())
        checkpoints.save(25, state)
        checkpoints.save(30, state)
    assert Checkpoints(tmp_path).steps() == [30]  # keep=1 counts the new history only
    assert (tmp_path / "30.set-aside").is_dir()
    assert int(Checkpoints(tmp_path).restore(abstract()).step) == 20


def test_the_step_restored_or_just_saved_is_not_written_again(tmp_path):
    write(tmp_path, [10])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, checkpoints.restore(abstract()))
        checkpoints.save(20, make_state(20))
        checkpoints.save(20, make_state(20))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "20"]


def test_a_save_that_cannot_start_is_reported_at_once(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, make_state())
        checkpoints.wait()
        shutil.rmtree(tmp_path / "c")
        (tmp_path / "c").write_text("in the way")
        with pytest.raises(CheckpointError, match=f"saving {tmp_path / 'c' / '2'} failed"):
            checkpoints.save(2, make_state())


FULL_DISK = """
import resource, sys, numpy as np, jax.numpy as jnp
from bitagent_jax.training.checkpoint import CheckpointError, Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(4)})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # writes beyond 1 MiB of a file now fail
    checkpoints.save(2, {"w": jnp.asarray(np.random.default_rng(0).normal(size=2**20))})
    try:
        checkpoints.save(3, {"w": jnp.ones(4)})
    except CheckpointError as error:
        print(error)
    print(checkpoints.steps())
"""


def test_a_save_that_fails_in_the_background_is_reported_at_the_next_call(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert f"saving {tmp_path / '2'} failed" in done.stdout
    assert done.stdout.endswith("[1]\n")


VICTIM = """
import sys, jax.numpy as jnp
from bitagent_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(10, {"w": jnp.ones(1 << 25)})
checkpoints.wait()
print("saved", flush=True)
checkpoints.save(20, {"w": jnp.arange(1 << 25)})
checkpoints.wait()
"""


def test_a_process_killed_in_mid_save_leaves_the_checkpoint_before_and_can_save_again(tmp_path):
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert victim.stdout.readline() == "saved\n"
        deadline = time.monotonic() + 20
        while not (half := [entry for entry in os.listdir(tmp_path) if entry.startswith("20")]):
            assert time.monotonic() < deadline
        os.kill(victim.pid, signal.SIGKILL)
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()
    assert half == ["20.orbax-checkpoint-tmp"] and "20" not in os.listdir(tmp_path)
    wanted = {"w": jax.ShapeDtypeStruct((1 << 25,), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(wanted)
        assert checkpoints.steps() == [10] and np.all(state["w"] == 1)
        checkpoints.save(20, state)
    assert sorted(os.listdir(tmp_path)) == ["10", "20"]


CRASH = """
import sys, jax.numpy as jnp
from bitagent_jax.training.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(1 << 22)})
    sys.exit(7)
"""


def test_an_exit_in_mid_save_finishes_it_and_does_not_hang(tmp_path):
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], timeout=40, check=False)
    assert done.returncode == 7 and os.listdir(tmp_path) == ["1"]


RESHARD = """
import sys, jax, jax.numpy as jnp, numpy as np
from bitagent_jax.training import sharding
from bitagent_jax.training.checkpoint import Checkpoints

def init():
    kernel = jnp.arange(256 * 512.0).reshape(256, 512)
    return {"step": jnp.int32(3), "key": jax.random.key(4), "params": {"net": {"kernel": kernel}}}

abstract = jax.eval_shape(init)
eight = sharding.make_mesh(fsdp=4)
state = jax.jit(init, out_shardings=sharding.state_shardings(eight, abstract))()
assert state["params"]["net"]["kernel"].addressable_shards[0].data.shape == (256, 128)
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(3, state)
two = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
target = sharding.with_shardings(abstract, sharding.state_shardings(two, abstract))
restored = Checkpoints(sys.argv[1]).restore(target)
assert all(jax.tree.leaves(jax.tree.map(lambda x, wanted: x.sharding == wanted.sharding, restored, target)))
kernel = restored["params"]["net"]["kernel"]
assert kernel.sharding.mesh.size == 2 and kernel.addressable_shards[0].data.shape == (256, 256)
np.testing.assert_array_equal(kernel, state["params"]["net"]["kernel"])
"""


def test_saved_on_eight_devices_restored_on_two_and_on_one(tmp_path):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", RESHARD, str(tmp_path)], env=env, timeout=60, check=True)
    wanted = {
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "params": {"net": {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32)}},
    }
    restored = Checkpoints(tmp_path).restore(wanted)
    np.testing.assert_array_equal(restored["params"]["net"]["kernel"], np.arange(256 * 512.0).reshape(256, 512))
    assert restored["step"] == 3 and restored["key"] == jax.random.key(4)
