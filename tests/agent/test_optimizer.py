"""Muon: matrices move along orthogonal directions by steps of Adam's size, vectors by Adam; rates fall at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitagent_jax.agent.joint import rate_shares
from bitagent_jax.agent.state import apply_gradients, build, init_state, optimizer
from bitagent_jax.training import sharding


@pytest.mark.parametrize("module", ["world_model", "actor"])
def test_matrices_move_alike_in_all_directions_and_vectors_by_adam(tiny, module):
    config = tiny(optim__kind="muon", optim__model_lr=0.1, optim__behavior_lr=0.1, optim__decay=0.0)
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.normal(size=(6, 6)))
    params = {"kernel": jnp.zeros((6, 6)), "bias": jnp.zeros(6)}
    grads = {"kernel": jnp.asarray(left @ np.diag([1, 0.8, 0.6, 0.5, 0.4, 0.3]) @ right), "bias": jnp.arange(1.0, 7)}
    chain = optimizer(config, module)
    update, _ = chain.update(grads, chain.init(params), params)
    values = np.linalg.svd(update["kernel"], compute_uv=False)
    assert values.max() / values.min() < 2  # 3.3 of the gradient
    assert np.sum(left * (update["kernel"] @ right.T)) < 0  # down
    rms = float(jnp.sqrt(jnp.mean(update["kernel"] ** 2)))
    assert rms == pytest.approx(0.2 * 0.1, rel=0.2)
    np.testing.assert_allclose(update["bias"], np.full(6, update["bias"][0]), rtol=1e-3)  # whatever the gradient's size
    assert -0.15 < update["bias"][0] < -0.1  # Nesterov's first step is a little longer


def test_its_state_can_be_placed_on_a_mesh(tiny):
    config = tiny(optim__kind="muon")
    _, init = build(config, 16, 2)
    abstract = jax.eval_shape(lambda: init_state(config, init))
    shardings = sharding.state_shardings(sharding.make_mesh(1), abstract)
    assert jax.tree.structure(shardings) == jax.tree.structure(abstract)


def test_rates_fall_over_the_last_part_of_each_stage(tiny):
    config = tiny(optim__cooldown=0.25, optim__refine=0.1, train__stage1_steps=100, train__stage2_steps=40)
    shares = {(1, 0): 1, (1, 75): 1, (1, 90): 0.4, (1, 99): 0.04, (2, 100): 1, (2, 135): 0.5, (2, 139): 0.1}
    for (stage, step), share in shares.items():
        model = share if stage == 1 else 0.1 * share
        assert rate_shares(config, stage, jnp.array(step)) == pytest.approx((model, share)), (stage, step)
    assert rate_shares(tiny(), 1, jnp.array(10**6)) == (1, 1)


@pytest.mark.parametrize("kind", ["adam", "muon"])
@pytest.mark.parametrize("module", ["actor", "fusion"])
def test_a_share_of_the_rates_is_that_of_the_updates(tiny, kind, module):
    params = {module: {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), params)
    moved = []
    for rate, share in ((0.1, 0.3), (0.03, 1.0)):
        config = tiny(optim__kind=kind, optim__behavior_lr=rate, optim__model_lr=rate, optim__decay=0.0)
        opt = {module: optimizer(config, module).init(params[module])}
        moved.append(jax.jit(lambda o, s, c=config: apply_gradients(c, params, o, grads, s)[0])(opt, (share, share)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *moved)
    assert not np.allclose(moved[0][module]["bias"], 1.0)


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_decay_takes_its_share_of_the_weights_whatever_the_rate(tiny, kind):
    params = {"actor": {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.ones(4)}}
    config = tiny(optim__kind=kind, optim__behavior_lr=1e-3, optim__decay=0.1)
    opt = {"actor": optimizer(config, "actor").init(params["actor"])}
    after, *_ = apply_gradients(config, params, opt, jax.tree.map(jnp.zeros_like, params), (1.0, 0.5))
    np.testing.assert_allclose(after["actor"]["kernel"], 1.9, rtol=1e-6)
    np.testing.assert_allclose(after["actor"]["bias"], 0.95, rtol=1e-6)
