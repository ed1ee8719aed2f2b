"""The method learns: a world of one bright square that the action moves and whose place the embedding tells."""

import numpy as np
import pytest

STEPS = 300
PLACES = 41  # the square's left edge, 0 .. 40


def embedding_of(place):
    """Unit vectors [..., 16] that turn with the place: near places are similar."""
    angle = np.pi * np.asarray(place)[..., None] / PLACES * np.arange(1, 9) / 4
    return (np.concatenate([np.cos(angle), np.sin(angle)], -1) / 8**0.5).astype(np.float32)


def sequences(rng, count=8, length=8):
    """Random walks: the first action moves the square by up to 8 pixels a step."""
    action = rng.uniform(-1, 1, (count, length, 2)).astype(np.float32)
    action[:, :, 0] = np.clip(action[:, :, 0] + rng.choice([-0.7, 0, 0.7], (count, 1)), -1, 1)
    place = np.zeros((count, length), int)
    place[:, 0] = rng.integers(0, PLACES, count)
    for t in range(1, length):
        place[:, t] = np.clip(place[:, t - 1] + np.round(8 * action[:, t, 0]), 0, PLACES - 1)
    image = np.full((count, length, 64, 64, 3), 40, np.uint8)
    for i in range(count):
        for t in range(length):
            image[i, t, 20:44, place[i, t] : place[i, t] + 24] = (230, 200, 60)
    return {
        "image": image,
        "action": action,
        "is_first": np.zeros((count, length), bool),
        "embedding": embedding_of(place),
        "has_embedding": np.ones((count, length), bool),
        "text": np.zeros((count, 16), np.float32),
        "has_text": np.zeros(count, bool),
    }


@pytest.fixture(scope="module")
def learned(tiny, start, compiled):
    config, rng = tiny(), np.random.default_rng(0)
    state, history = start(config), []
    graph, step = compiled(config, 1)
    data = [sequences(rng) for _ in range(50)]
    for i in range(STEPS):
        state, metrics = step(state, data[i % 50])
        history.append({name: float(value) for name, value in metrics.items()})
    return graph, state, history, data


def mean(history, name, part):
    return np.mean([row[name] for row in history[part]])


def test_the_world_model_beats_the_mean_image(learned):
    _, _, history, data = learned
    images = np.concatenate([batch["image"] for batch in data]).astype(np.float32) / 255
    of_mean = np.square(images - images.mean((0, 1))).sum((-3, -2, -1)).mean()
    first, last = (mean(history, "loss/reconstruction", part) for part in (slice(0, 1), slice(-20, None)))
    assert last < 0.5 * of_mean < first


def test_the_dynamics_the_semantics_and_the_task_prior_learn(learned):
    history = learned[2]
    for name, share in (("loss/semantic", 0.5), ("loss/text", 0.9), ("loss/task_kl", 0.9)):
        early = np.max([row[name] for row in history[:60]])
        assert mean(history, name, slice(-20, None)) < share * early, name


def test_what_the_policy_imagines_comes_nearer_to_the_task(tiny, learned, compiled):
    graph, state, _, data = learned
    _, step = compiled(tiny(), 2)
    untrained = state.params["actor"]
    for i in range(200):
        state, _ = step(state, data[i % 50])

    def imagined(actor):  # in one world model, from the same states, with the same noise
        probe = state._replace(params=state.params | {"actor": actor})
        return np.mean([float(step(probe, batch)[1]["imagined/reward"]) for batch in data[:10]])

    assert imagined(state.params["actor"]) > imagined(untrained) + 0.02
