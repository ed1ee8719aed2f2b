"""The probe of latents: what it records, and that it finds what is there and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import latent_probe as probe


def test_without_noise_the_expert_does_what_it_wants():
    rows = probe.record("walker_walk", 0, 6)
    assert rows["image"].shape == (len(probe.LEVELS), 6, 64, 64, 3)
    np.testing.assert_allclose(rows["action"][0, 1:], rows["wanted"][0, :-1], atol=1e-6)
    assert np.abs(rows["action"][-1, 1:] - rows["wanted"][-1, :-1]).mean() > 0.2


def test_it_explains_what_the_input_tells_and_nothing_else(monkeypatch):
    monkeypatch.setattr(probe, "UPDATES", 300)
    rng = np.random.default_rng(0)
    post = np.log(rng.dirichlet(np.ones(3), (40, 50, 2)))
    deter = rng.normal(size=(40, 50, 4))
    told, noise = np.tanh(deter[..., :2]), np.tanh(rng.normal(size=(40, 50, 2)))
    rows = {"deter": deter, "post": post, "told": told, "noise": noise}
    rows = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rows)

    def share(wanted):
        named = rows | {"wanted": rows[wanted]}
        train = {name: value[:38].reshape(-1, *value.shape[2:]) for name, value in named.items()}
        return probe.explained(probe.latent_inputs, train, {name: value[38:] for name, value in named.items()})

    assert min(share("told")) > 0.8 and max(share("noise")) < 0.2


def test_latents_are_drawn_to_learn_and_at_their_mode_in_the_test():
    rows = {"deter": jnp.zeros((2000, 1)), "post": jnp.log(jnp.broadcast_to(jnp.array([0.7, 0.3]), (2000, 1, 2)))}
    np.testing.assert_array_equal(probe.latent_inputs(rows, None)[0], [0, 1, 0])
    drawn = probe.latent_inputs(rows, jax.random.key(0)).mean(0)
    np.testing.assert_allclose(drawn, [0, 0.7, 0.3], atol=0.05)
