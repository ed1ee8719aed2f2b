"""A data set in the devices' memory: the replay's own batches, where there is room for them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bitagent_jax.config import make_config
from bitagent_jax.data.replay import Replay, load_folder
from bitagent_jax.training import resident, session, sharding

EMBED, FINGERPRINT = 16, "0123456789abcdef"


@pytest.fixture
def replay(tmp_path, write_rows):
    for number, rows in enumerate((40, 9, 33, 60)):
        write_rows(tmp_path, rows, number)
    replay = Replay(1000, embed_dim=EMBED)
    load_folder(tmp_path, replay, fingerprint=FINGERPRINT)
    replay.set_texts({"walk": np.ones(EMBED) / EMBED**0.5})
    return replay


@pytest.mark.parametrize("block", [50, 4096])
def test_batches_are_those_of_the_replay(replay, block, monkeypatch):
    monkeypatch.setattr(resident, "BLOCK", block)
    held = resident.Resident(replay, sharding.make_mesh(devices=jax.devices()[:1]))
    for seed in range(3):
        expected = replay.sample(6, 16, np.random.default_rng(seed))
        got = held.sample(6, 16, np.random.default_rng(seed))
        assert got.keys() == expected.keys() - {"reward"}
        for name, field in got.items():
            assert field.dtype == expected[name].dtype
            np.testing.assert_array_equal(field, expected[name])


def test_there_is_room_if_every_device_tells_enough_memory(replay, monkeypatch):
    assert not resident.fits(replay, 1.0)  # a CPU does not tell
    need = resident.BLOCK * (64 * 64 * 3 + 4 * 2 + 1 + 4 * EMBED + 1)
    for limit, expected in ((2 * need, True), (2 * need - 2, False)):
        devices = [SimpleNamespace(memory_stats=lambda told=told: {"bytes_limit": told}) for told in (limit, 9 * need)]
        monkeypatch.setattr(jax, "local_devices", lambda devices=devices: devices)
        assert resident.fits(replay, 0.5) == expected


def test_a_run_draws_the_same_batches_from_either(replay):
    config = make_config("walker", "debug")
    mesh, drawn = sharding.make_mesh(devices=jax.devices()[:1]), []
    place = lambda batch: sharding.place(mesh, {k: v for k, v in batch.items() if k != "reward"})  # noqa: E731
    for reside in (False, True):
        run = SimpleNamespace(
            config=config, replay=replay, mesh=mesh, step=3, _resident=None, _mine=None, _place=place,
            _may_reside=lambda among, reside=reside: reside,
        )  # fmt: skip
        with session.Session.loader(run, 1) as loader:
            drawn.append(next(loader))
        assert (run._resident is not None) == reside
    jax.tree.map(np.testing.assert_array_equal, *drawn)


def test_stage_2_from_latents_frees_the_memory(replay):
    config = make_config("walker", "debug,frozen_world_model")
    latents = SimpleNamespace(update=lambda params: None, sample=lambda *_: {})
    run = SimpleNamespace(
        config=config, replay=replay, mesh=None, step=3, _resident=object(), _mine=None, _place=lambda batch: batch,
        _latents=latents, state=SimpleNamespace(params={}),
    )  # fmt: skip
    with session.Session.loader(run, 2) as loader:
        assert next(loader) == {}
    assert run._resident is None


def test_online_collection_leaves_the_data_on_the_host(replay, monkeypatch):
    monkeypatch.setattr(session, "fits", lambda replay, share: share == 0.5)
    run = SimpleNamespace(config=make_config("walker", "debug"), replay=replay)
    assert session.Session._may_reside(run, among=1) and not session.Session._may_reside(run, among=2)
    run.config.data.online_every = 5
    assert not session.Session._may_reside(run, among=1)
