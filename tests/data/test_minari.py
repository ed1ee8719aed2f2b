"""Minari data sets: a real round trip, and sets that are foreign or damaged."""

import json
import logging

import numpy as np
import pytest

from bitagent_jax.data.episodes import list_episodes, read_episode, write_episode
from bitagent_jax.data.minari import export_minari, import_minari

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
from gymnasium.spaces import Box, Dict, Discrete  # noqa: E402
from minari.dataset.minari_dataset import MinariDataset  # noqa: E402
from minari.dataset.minari_storage import MinariStorage  # noqa: E402

PICTURE = Box(0, 255, (40, 40, 3), np.uint8)
DATA = "data/main_data.hdf5"


@pytest.fixture
def folder(tmp_path, make_arrays):
    """Return a folder of three episodes of 5, 6 and 7 rows, the second of which ended in a terminal state."""
    rng = np.random.default_rng(0)
    for number in range(3):
        arrays = make_arrays(5 + number, number)
        arrays |= {"image": rng.integers(0, 256, (5 + number, 40, 40, 3), np.uint8)}
        arrays["action"][0] = arrays["reward"][0] = 0
        meta = {"label": f"sentence {number}", "seed": number, "terminated": number == 1, "versions": {"mujoco": "3"}}
        write_episode(tmp_path / "own", arrays, meta, name=f"{number}")
    return tmp_path / "own"


@pytest.fixture
def exported(folder, tmp_path):
    assert export_minari(folder, tmp_path / "sets" / "walker-v0") == 3
    return tmp_path / "sets" / "walker-v0"


def test_a_round_trip_changes_nothing(folder, exported, tmp_path):
    assert import_minari(exported, tmp_path / "back") == (3, 0, [])
    assert import_minari(exported, tmp_path / "back") == (0, 3, [])
    pairs = list(zip(list_episodes(folder), list_episodes(tmp_path / "back"), strict=True))
    for number, (old, new) in enumerate(pairs):
        assert new.name == f"walker-v0-{number:06d}.ep"
        (arrays, meta), (back, back_meta) = read_episode(old), read_episode(new)
        assert back_meta == meta | {"source": "minari", "file": f"walker-v0/{number}"}
        for key, array in arrays.items():
            np.testing.assert_array_equal(back[key], array, strict=True)


def test_minari_reads_an_export(folder, exported, monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(exported.parent))
    data = minari.load_dataset("walker-v0")
    assert (data.total_episodes, data.total_steps) == (3, 4 + 5 + 6)
    second = data[1]
    arrays, _ = read_episode(folder / "1.ep")
    np.testing.assert_array_equal(second.observations, arrays["image"])
    np.testing.assert_array_equal(second.actions, arrays["action"][1:])
    assert second.terminations.tolist() == [False] * 4 + [True] and not second.truncations.any()
    assert data[2].truncations[-1] and not data[2].terminations.any()
    assert import_minari("walker-v0", tmp_path / "by-id").written == 3


def make_set(path, observation_space, action_space, observations, actions):
    """Write a data set of one episode with Minari alone."""
    path.mkdir(parents=True)
    storage = MinariStorage.new(path / "data", observation_space, action_space)
    storage.update_metadata({"dataset_id": path.name, "minari_version": minari.__version__})
    steps = np.arange(len(actions))
    storage.update_episodes(
        [minari.data_collector.EpisodeBuffer(
            observations=observations, actions=actions, rewards=steps / 2, terminations=steps == len(steps) - 1,
            truncations=steps < 0,
        )]
    )  # fmt: skip
    MinariDataset(path / "data")
    return path


def test_foreign_sets_with_a_picture_among_others_and_other_bounds(tmp_path):
    space = Dict({"rgb": PICTURE, "state": Box(-1, 1, (3,))})
    seen = {"rgb": np.full((5, 40, 40, 3), 9, np.uint8), "state": np.zeros((5, 3), np.float32)}
    low, high = np.float32([0, -np.inf]), np.float32([4, np.inf])
    path = make_set(tmp_path / "a-v0", space, Box(low, high), seen, np.float32([[0, 0.5], [2, 0], [3, 0], [4, 0]]))
    import_minari(path, tmp_path / "out", {"body": "own"})
    arrays, meta = read_episode(tmp_path / "out" / "a-v0-000000.ep")
    np.testing.assert_array_equal(arrays["action"], [[0, 0], [-1, 0.5], [0, 0], [0.5, 0], [1, 0]])
    np.testing.assert_array_equal(arrays["reward"], [0, 0, 0.5, 1, 1.5])
    assert np.abs(arrays["image"].astype(int) - 9).max() < 3  # Minari's own pictures are JPEG
    assert meta == {"body": "own", "file": "a-v0/0", "label": "", "source": "minari", "terminated": True}


@pytest.mark.parametrize("observation, action, message", [
    (Box(-1, 1, (3,)), Box(-1, 1, (2,)), "observations with one picture"),
    (Dict({"a": PICTURE, "b": PICTURE}), Box(-1, 1, (2,)), "observations with one picture"),
    (PICTURE, Discrete(3), "vectors of real numbers"),
])  # fmt: skip
def test_sets_that_no_agent_here_could_learn_from_are_refused(tmp_path, observation, action, message):
    sample = lambda space: [space.sample() for _ in range(4)]  # noqa: E731
    first = {key: np.stack(sample(inner)) for key, inner in getattr(observation, "spaces", {}).items()}
    path = make_set(tmp_path / "a-v0", observation, action, first or np.stack(sample(observation)), sample(action)[1:])
    with pytest.raises(ValueError, match=message):
        import_minari(path, tmp_path / "out")


def edit(change):
    def damage(path):
        with h5py.File(path / DATA, "a") as file:
            change(file["episode_1"])

    return damage


def replace(name, **made):
    def change(group):
        del group[name]
        group.create_dataset(name, **made)

    return edit(change)


BAD = {
    "nan_action": edit(lambda group: group["actions"].write_direct(np.full((5, 2), np.nan, np.float32))),
    "nan_reward": edit(lambda group: group["rewards"].write_direct(np.full(5, np.nan))),
    "missing": edit(lambda group: group.pop("actions")),
    "short": replace("actions", data=np.zeros((2, 2), np.float32)),
    "narrow": replace("actions", data=np.zeros((5, 1), np.float32)),
    "text": replace("actions", data=[["a", "b"]] * 5),
    "image": replace("observations", data=np.zeros((6, 40, 40, 4), np.uint8)),
    "bomb": replace("observations", shape=(1 << 40, 40, 40, 3), dtype=np.uint8, chunks=(1, 40, 40, 3)),
    "meta": edit(lambda group: group.attrs.update(bitagent="{no json")),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_episodes_are_named_and_skipped(exported, tmp_path, kind, caplog):
    BAD[kind](exported)
    with caplog.at_level(logging.WARNING):
        assert import_minari(exported, tmp_path / "out") == (2, 0, ["walker-v0/1"])
    assert "walker-v0/1" in caplog.text
    assert [path.stem[-1] for path in list_episodes(tmp_path / "out")] == ["0", "2"]


def test_a_set_that_asks_for_its_environment_to_be_made_is_refused(exported, tmp_path):
    metadata = json.loads((exported / "data" / "metadata.json").read_text())
    del metadata["observation_space"]
    spec = {"id": "Trap-v0", "entry_point": "trap:make", "kwargs": {}}
    (exported / "data" / "metadata.json").write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
    with pytest.raises(ValueError, match="do not describe its spaces"):
        import_minari(exported, tmp_path / "out")


@pytest.mark.parametrize("damage", ["metadata", "format", "data", "absent"])
def test_what_is_no_data_set_is_an_error(exported, tmp_path, damage, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))
    metadata = json.loads((exported / "data" / "metadata.json").read_text())
    if damage == "metadata":
        (exported / "data" / "metadata.json").write_text("{")
    elif damage == "format":
        (exported / "data" / "metadata.json").write_text(json.dumps(metadata | {"data_format": "pickle"}))
    elif damage == "data":
        (exported / DATA).write_bytes(b"no HDF5")
    source, message = (
        (exported, "no Minari data set at|nothing to import") if damage != "absent" else ("wlker-v0", "wlker-v0")
    )
    with pytest.raises(ValueError, match=message):
        import_minari(source, tmp_path / "out")


def test_exports_that_cannot_be_are_refused(folder, exported, make_arrays, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        export_minari(folder, exported)
    with pytest.raises(ValueError, match="found none"):
        export_minari(tmp_path / "none", tmp_path / "b-v0")
    write_episode(folder, make_arrays(6), {}, name="other")
    with pytest.raises(ValueError, match="expected episodes of one shape .* and "):
        export_minari(folder, tmp_path / "b-v0")
    with pytest.raises(ValueError, match="no name"):
        export_minari(folder, tmp_path / "no name")
    assert not list(tmp_path.glob("*b-v0*")) and not list(tmp_path.glob(".export*"))
