"""Plan2Explore: what disagreement is, that it marks the unknown, and what each loss may change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from bitagent_jax.agent.acting import initial_carry, make_act
from bitagent_jax.agent.baselines import plan2explore
from bitagent_jax.agent.baselines.plan2explore import Ensemble, disagreement
from bitagent_jax.agent.state import init_state
from bitagent_jax.config import make_config

ACTIONS = 2


def test_disagreement_of_two_heads_by_hand():
    """Two latents of two classes: variances .25 + .25 and .01 + 0, so (.5 + .01) / 2; equal heads differ by nothing."""
    one, two = jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([[0.0, 1.0], [0.7, 0.5]])
    np.testing.assert_allclose(disagreement(jnp.stack([one, two])), 0.255, rtol=1e-5)
    np.testing.assert_allclose(disagreement(jnp.stack([one] * 5)), 0.0, atol=1e-9)
    assert disagreement(jnp.zeros((5, 3, 7, 2, 2))).shape == (3, 7)


def test_equal_heads_agree_and_others_do_not():
    ensemble = Ensemble(5, 3, 4, ConfigDict(dict(heads=3, layers=1, units=8)), rngs=nnx.Rngs(0))
    state, action = jnp.ones((6, 3)), jnp.ones((6, 2))
    assert ensemble(state, action).shape == (3, 6, 3, 4) and (disagreement(ensemble(state, action)) > 1e-3).all()
    for i in (1, 2):
        nnx.update(getattr(ensemble, f"head{i}"), nnx.state(ensemble.head0))
    np.testing.assert_allclose(disagreement(ensemble(state, action)), 0.0, atol=1e-9)


def test_disagreement_falls_where_there_was_data_and_stays_high_elsewhere():
    """Latents that depend on state and action; trained where the first feature is -1, asked where it is 1 as well."""
    rng = np.random.default_rng(0)
    ensemble = Ensemble(6, 2, 4, ConfigDict(dict(heads=5, layers=2, units=32)), rngs=nnx.Rngs(1))
    graph, params = nnx.split(ensemble)
    state, action = rng.normal(size=(512, 4)).astype(np.float32), rng.uniform(-1, 1, (512, 2)).astype(np.float32)
    known, other = state.copy(), state.copy()
    known[:, 0], other[:, 0] = -1, 1
    mixing = rng.normal(size=(6, 8))
    target = jax.nn.softmax(jnp.concatenate([known, action], 1) @ mixing.reshape(6, 8) * 0.5).reshape(512, 2, 4)
    optimiser = optax.adam(3e-3)

    def loss(params):
        return jnp.mean(nnx.merge(graph, params).loss(known, action, target))

    def step(carry, _):
        params, opt = carry
        update, opt = optimiser.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, update), opt), None

    measure = jax.jit(lambda params, state: jnp.mean(disagreement(nnx.merge(graph, params)(state, action))))
    before = measure(params, known), measure(params, other)
    (params, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, length=300))((params, optimiser.init(params)))
    after = measure(params, known), measure(params, other)
    assert after[0] < 0.05 * before[0] and after[1] > 5 * after[0]


@pytest.fixture(scope="module")
def stepped(tiny, batch, fast):
    """``step(state) -> (state, metrics)`` of a tiny explorer on the batch, its first state, graph and config."""
    config = tiny()
    graph, init = plan2explore.build(config, ACTIONS)
    rows = {name: batch[name] for name in ("image", "action", "is_first")}
    with fast():
        state = jax.jit(lambda: init_state(config, init))()
        step = jax.jit(plan2explore.make_train_step(graph, config)).lower(state, rows).compile()
    return lambda state: step(state, rows), state, graph, config


def moved(state, name, seed=3):
    """Return the state with another module ``name``."""
    rng = np.random.default_rng(seed)
    shaken = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), state.params[name])
    return state._replace(params=state.params | {name: shaken})


def equal(one, two, name):
    leaves = zip(jax.tree.leaves(one.opt[name]), jax.tree.leaves(two.opt[name]), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def test_each_loss_changes_its_own_modules_alone(stepped):
    """The gradients, in Adam's moments, of a module depend on another exactly where they should."""
    step, state, _, _ = stepped
    first, metrics = step(state)
    assert set(plan2explore.TABLE) == {name.split("/")[1] for name in metrics if name.startswith("loss/")}
    assert all(np.isfinite(value) for value in metrics.values()) and int(first.step) == 1
    for name in state.params:
        assert float(metrics[f"grad_norm/{name}"]) > 0
    reached = {}
    for name in ("ensemble", "actor", "critic"):
        changed, _ = step(moved(state, name))
        reached[name] = {other for other in state.params if not equal(first, changed, other)}
    assert reached["ensemble"] == {"ensemble", "actor", "critic"}  # it makes the reward
    assert reached["actor"] == {"actor", "critic"}
    assert reached["critic"] == {"critic"}  # the slow one makes the returns
    again, _ = step(state)
    assert all(equal(first, again, name) for name in state.params)


def test_the_explorer_acts_on_frames_alone(stepped, batch):
    _, state, graph, config = stepped
    carry, none = initial_carry(config, ACTIONS, 8), np.zeros((8, 0), np.float32)
    act = make_act(graph, config)
    image, first = batch["image"][:, 0], np.ones(8, bool)
    action, carry = act(state.params, carry, image, first, none, none, ~first, jax.random.key(0), sample=True)
    assert action.shape == (8, ACTIONS) and carry["deter"].shape[0] == 8
    assert np.isfinite(action).all() and np.std(action) > 0.05


@pytest.mark.parametrize("names", ["paper", "cpu", "debug,history,hold"])
def test_every_size_and_kind_of_world_model_can_be_explored(names):
    """Traced, not run: the step maps a state to one of the same shapes and types."""
    config, shape = make_config("quadruped", names), jax.ShapeDtypeStruct
    config.compute.dtype = "bfloat16"
    graph, init = plan2explore.build(config, 12)
    state, rows = jax.eval_shape(lambda: init_state(config, init)), (config.train.batch, config.train.length)
    batch = {
        "image": shape((*rows, 64, 64, 3), np.uint8),
        "action": shape((*rows, 12), np.float32),
        "is_first": shape(rows, bool),
    }
    after, metrics = jax.eval_shape(plan2explore.make_train_step(graph, config), state, batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(jax.tree.leaves(same)) and metrics["imagined/disagreement"].shape == ()
