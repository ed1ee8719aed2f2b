import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent.world_model import WorldModel, balanced_kl, feature


def settings(**fields):
    base = dict(
        deter=6, hidden=8, stoch=3, classes=4, unimix=0.01, logit_scale=1.0, vision="patch", depth=2, posterior="frame",
        decoder="stoch", kl_scale=0.6, kl_balance=0.85, free_nats=1.0,
    )  # fmt: skip
    return types.SimpleNamespace(**(base | fields))


@pytest.fixture(scope="module", params=["frame", "history"])
def model(request):
    decoder = "feat" if request.param == "history" else "stoch"
    return WorldModel(settings(posterior=request.param, decoder=decoder), 2, rngs=nnx.Rngs(0))


def sequence(length=6, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (2, length, 64, 64, 3), dtype=np.uint8)
    return image, rng.uniform(-1, 1, (2, length, 2)).astype(np.float32), np.zeros((2, length), bool)


def sharp(model):
    """Make every distribution all but certain, so that other random keys draw the same latents."""
    graph, params = nnx.split(model)
    model = nnx.merge(graph, jax.tree.map(jnp.copy, params))
    model.config = settings(**(vars(model.config) | {"unimix": 0.0}))
    model.dynamics.unimix = 0.0
    model.posterior_head.out.kernel[...] = 1e4 * model.posterior_head.out.kernel[...]
    return model


def test_an_episode_that_begins_midway_equals_two_sequences(model):
    model = sharp(model)
    image, action, first = sequence()
    first[:, 3] = True
    observe = jax.jit(model.observe)
    whole = observe(image, action, first, jax.random.key(0))
    ahead = observe(image[:, :3], action[:, :3], first[:, :3], jax.random.key(1))
    after = observe(image[:, 3:], action[:, 3:], first[:, 3:], jax.random.key(2))
    for name in ("deter", "stoch", "prior"):
        np.testing.assert_allclose(whole[name][:, :3], ahead[name], atol=1e-5)
        np.testing.assert_allclose(whole[name][:, 3:], after[name], atol=1e-5)
    without = observe(image, action, np.zeros_like(first), jax.random.key(0))
    assert np.abs(without["deter"][:, 3:] - whole["deter"][:, 3:]).max() > 1e-3  # the past does matter otherwise
    changed = np.where(first[..., None], 0.9, action)
    np.testing.assert_array_equal(observe(image, changed, first, jax.random.key(0))["deter"], whole["deter"])


def test_filtering_frame_by_frame_equals_observing_the_sequence(model):
    model = sharp(model)
    image, action, first = sequence()
    first[0, 2] = True
    seen = jax.jit(model.observe)(image, action, first, jax.random.key(0))
    state, embed, take = model.initial(2), model.encode(image), jax.jit(model.filter)
    for t in range(6):
        state, post = take(state, embed[:, t], action[:, t], first[:, t], jax.random.key(t))
        np.testing.assert_allclose(state["deter"], seen["deter"][:, t], atol=1e-4)
        np.testing.assert_allclose(state["stoch"], seen["stoch"][:, t], atol=1e-4)
        if t:
            before = {name: seen[name][:, t - 1] for name in ("deter", "stoch")}
            imagined, prior = model.imagine(before, action[:, t], jax.random.key(9))
            same = ~first[:, t]
            np.testing.assert_allclose(imagined["deter"][same], seen["deter"][same, t], atol=1e-4)
            np.testing.assert_allclose(prior[same], seen["prior"][same, t], atol=1e-3)


def test_frame_posteriors_see_their_frame_alone_and_the_state_never_sees_it():
    model = WorldModel(settings(), 2, rngs=nnx.Rngs(0))
    image, action, first = sequence()
    other = image.copy()
    other[:, 3] = 255 - other[:, 3]
    observe = jax.jit(model.observe)
    seen, moved = observe(image, action, first, jax.random.key(0)), observe(other, action, first, jax.random.key(0))
    different = lambda name: np.abs(seen[name] - moved[name]).max((0, *range(2, seen[name].ndim))) > 1e-6  # noqa: E731
    assert different("post").tolist() == [False, False, False, True, False, False]
    assert not different("deter")[:4].any()  # h_t is predicted from what came before frame t
    assert not different("prior")[:4].any()


def test_shapes_and_dtypes(model):
    image, action, first = sequence()
    seen = jax.eval_shape(model.observe, image, action, first, jax.random.key(0))
    assert {name: value.shape for name, value in seen.items()} == {
        "deter": (2, 6, 6), "stoch": (2, 6, 12), "post": (2, 6, 3, 4), "prior": (2, 6, 3, 4),
    }  # fmt: skip
    assert all(value.dtype == jnp.float32 for value in seen.values())
    assert jax.eval_shape(model.decode, seen).shape == (2, 6, 64, 64, 3)
    assert feature(model.initial(5)).shape == (5, model.feature_dim) == (5, 18)


def test_reconstruction_is_summed_over_pixels_of_centred_images():
    model = WorldModel(settings(), 2, rngs=nnx.Rngs(0))
    model.decoder.pixels.kernel[...] = jnp.zeros_like(model.decoder.pixels.kernel[...])  # decodes zeros: grey 127.5
    log_probs = jnp.log(jnp.full((1, 2, 3, 4), 0.25))
    observed = {"stoch": jnp.zeros((1, 2, 12)), "deter": jnp.zeros((1, 2, 6)), "post": log_probs, "prior": log_probs}
    image = np.stack([np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), 51, np.uint8)])[None]
    loss = model.loss(observed, image)
    np.testing.assert_allclose(loss["reconstruction"], [[12288 * 0.25, 12288 * 0.09]], rtol=1e-5)
    np.testing.assert_allclose(loss["kl"], [[0.6, 0.6]], rtol=1e-5)  # one free nat on both sides


def test_balanced_kl_by_hand():
    post, prior = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.1, 0.9]]))
    # KL(post || prior) = .9 ln 9 + .1 ln(1/9) = .8 ln 9 = 1.757780 > 1 nat, on both sides
    np.testing.assert_allclose(balanced_kl(post, prior, settings()), 0.6 * 1.757780, rtol=1e-5)
    pull = jax.grad(balanced_kl, argnums=(0, 1))
    to_post, to_prior = pull(post, prior, settings())
    # d/d prior of -sum q p: -(.9, .1);  d/d post of sum e^q (q - p): e^q (q - p + 1)
    np.testing.assert_allclose(to_prior, [[-0.6 * 0.85 * 0.9, -0.6 * 0.85 * 0.1]], rtol=1e-5)
    ln9 = np.log(9)
    np.testing.assert_allclose(to_post, [[0.09 * 0.9 * (1 + ln9), 0.09 * 0.1 * (1 - ln9)]], rtol=1e-5)


def test_below_the_free_nats_nothing_is_learned():
    post, prior = jnp.log(jnp.array([[0.6, 0.4]])), jnp.log(jnp.array([[0.4, 0.6]]))
    assert float(balanced_kl(post, prior, settings())) == pytest.approx(0.6)
    assert not np.any(jax.grad(balanced_kl)(post, prior, settings()))
