"""The yardstick and the peers draw and simulate what the pool does."""

import numpy as np
import pytest

from bitagent_jax.bench.bare import Bare, BareProcesses
from bitagent_jax.bench.breakdown import breakdown
from bitagent_jax.bench.peers import PlainDmc
from bitagent_jax.envs.dmc import make_env


@pytest.mark.parametrize("look", ["fast", "stock"])
def test_bare_and_plain_draw_the_same_pictures_as_the_environment(look):
    env, bare, plain = make_env("walker_walk", look=look), Bare("walker_walk", look, 64, 2), None
    image, _ = env.reset(seed=1)
    plain = PlainDmc("walker_walk", look, 64, 2)
    plain.reset()
    with plain._control.physics.reset_context():
        plain._control.physics.set_state(env.state())
    np.testing.assert_array_equal(plain._picture(), image)
    bare._datas[0] = env.physics.data.ptr
    with bare.physics.contexts.gl.make_current():
        bare.draw(0), bare.read(0)
    np.testing.assert_array_equal(bare.images[0][::-1], image)
    env.close()


def test_bare_simulates_as_many_substeps_as_the_environment():
    env, bare = make_env("cheetah_run", render=False), Bare("cheetah_run", "fast", 16, 2)
    env.reset()
    before = env.physics.time(), bare._datas[0].time
    env.step(np.zeros(6)), bare.advance(0)
    assert env.physics.time() - before[0] == pytest.approx(bare._datas[0].time - before[1])


def test_bare_processes_add_up_their_speeds():
    bare = BareProcesses("cheetah_run", "fast", 16, 2, [2, 1])
    assert bare.run(0.1) > 0
    bare.close()


def test_breakdown_adds_up():
    row = breakdown("cheetah_run", "fast", rounds=1)
    assert (row.pop("task"), row.pop("look"), row.pop("total") > 0) == ("cheetah_run", "fast", True)
    assert row.keys() == {"physics", "render", "read", "copy", "python"} and min(row.values()) >= 0
