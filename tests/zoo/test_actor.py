"""The NumPy actor by hand, and its file format."""

import numpy as np
import pytest

from bitagent_jax.zoo.actor import Actor, from_bytes, to_bytes

# relu([1, -2] @ [[1, 2], [3, -1]] + [0, 1]) = relu([-5, 5]) = [0, 5]; tanh(5 * .2 - .5) = tanh(.5)
LAYERS = [(np.array([[1, 2], [3, -1]]), np.array([0, 1])), (np.array([[7], [0.2]]), np.array([-0.5]))]


def random_actor(*widths: int, seed: int = 0) -> Actor:
    rng = np.random.default_rng(seed)
    return Actor([(rng.normal(size=(n, m)), rng.normal(size=m)) for n, m in zip(widths, widths[1:], strict=False)])


def test_forward_by_hand():
    actor = Actor(LAYERS)
    action = actor(np.array([[1, -2]]))
    assert (actor.state_dim, actor.action_dim) == (2, 1) and action.dtype == np.float32
    np.testing.assert_allclose(action, [[np.tanh(0.5)]], rtol=1e-6)


def test_rows_do_not_mix_and_may_be_none():
    actor, states = random_actor(3, 8, 2), np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(actor(states)[3:4], actor(states[3:4]), atol=1e-6)
    assert actor(states[:0]).shape == (0, 2)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 3, 3)])
def test_states_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"shape \(N, 3\), got"):
        random_actor(3, 2)(np.zeros(shape))


@pytest.mark.parametrize("layers", [[*LAYERS, LAYERS[0]], [(np.zeros((2, 3)), np.zeros(2))]])
def test_layers_must_chain(layers):
    with pytest.raises(ValueError, match="do not chain"):
        Actor(layers)


def test_packing_keeps_float16_exactly_and_float32_on_request():
    actor = random_actor(3, 4, 2)
    rounded = from_bytes(to_bytes(actor))
    for (w, b), (v, c) in zip(actor.layers, rounded.layers, strict=True):
        np.testing.assert_array_equal(w.astype(np.float16), v)
        np.testing.assert_array_equal(b.astype(np.float16), c)
    assert to_bytes(rounded) == to_bytes(actor)
    states = np.ones((2, 3))
    np.testing.assert_array_equal(from_bytes(to_bytes(actor, "float32"))(states), actor(states))


def test_other_tensors_are_named():
    from safetensors.numpy import save

    for tensors in ({}, {"w0": np.zeros((2, 2))}, {"w0": np.zeros((2, 2)), "b1": np.zeros(2)}):
        with pytest.raises(ValueError, match="not the tensors of an actor"):
            from_bytes(save(tensors))
