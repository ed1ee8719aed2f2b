"""Muon: matrices move along orthogonal directions by steps of Adam's size, vectors by Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitagent_jax.agent.state import build, init_state, optimizer
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
