"""Which rows a run embeds, and what it checks before its folder is made."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from bitagent_jax.config import make_config
from bitagent_jax.data.episodes import list_episodes
from bitagent_jax.data.records import open_records, write_records
from bitagent_jax.training import session
from bitagent_jax.training.loops import train


@pytest.mark.parametrize("names, stride", [("debug", 0), ("debug,hold", 1)])
def test_rollouts_that_hold_an_embedding_need_one_in_every_row(names, stride, monkeypatch):
    calls = []
    monkeypatch.setattr(session, "embed_folder", lambda folder, encoder, **options: calls.append(options))
    run = SimpleNamespace(_precomputed=False, config=make_config("walker", names), encoder=None)
    session.Session._embed(run, "folder", share=(1, 2))
    assert calls == [{"stride": stride, "share": (1, 2)}]


def test_rounds_of_episodes_take_turns_through_all_sentences_and_know_their_own(tmp_path, monkeypatch):
    """Three episodes a round from two environments, of three sentences; the second episode has been deleted."""
    config = make_config("walker", "debug")
    config.update_from_flattened_dict({"env.num_envs": 2, "data.online_episodes": 3})
    told, loaded = [], []

    def collect(pool, behave, *, episodes, folder, start, **_):
        for number in range(start, start + episodes):
            (folder / f"{number:06d}-x.ep").touch()

    monkeypatch.setattr(session, "collect", collect)
    monkeypatch.setattr(
        session, "load_folder", lambda folder, replay, paths, **_: loaded.append([p.name for p in paths])
    )
    run = SimpleNamespace(
        config=config, online_folder=tmp_path, replay=SimpleNamespace(labels=()), _embed=lambda folder: None,
        encoder=SimpleNamespace(fingerprint=""), _precomputed=False,
        _pool=lambda tasks: told.append(tasks) or nullcontext(SimpleNamespace(num_envs=len(tasks))),
    )  # fmt: skip
    for number in (0, 3):
        session.Session._collect_round(run, None, number, number)
        (tmp_path / "000001-x.ep").unlink(missing_ok=True)
        session.Session._add(run, tmp_path, range(number, number + 3))
    assert [task for tasks in told for task in tasks] == [*config.tasks, config.tasks[0]]
    assert loaded == [["000000-x.ep", "000002-x.ep"], ["000003-x.ep", "000004-x.ep", "000005-x.ep"]]


def test_prompts_are_checked_before_a_folder_is_made_but_not_once_they_are_kept(tmp_path):
    config = make_config("walker", "debug")
    config.tasks, config.prompts = (), ("run", "clip.mp5")
    with pytest.raises(ValueError, match="file of the prompt 'clip.mp5'"):
        train(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    config.prompts = ("run", "gone.npy")
    with pytest.raises(ValueError, match="no file 'gone.npy'"):
        session.check_inputs(tmp_path, config)
    np.savez(tmp_path / "prompts.npz")
    session.check_inputs(tmp_path, config)


def test_a_data_set_that_does_not_fit_is_named_before_a_folder_is_made(trained, tmp_path):
    whole = open_records(list_episodes(trained[0] / "online")[0])

    def refused(message, meta=None, rows=whole.rows, body="walker", **fields):
        folder = tmp_path / "data"
        arrays = {name: values[:rows] for name, values in whole.read().items()}
        write_records(folder / "0.ep", arrays, whole.meta | (meta or {}))
        config = make_config(body, "debug")
        config.update_from_flattened_dict({"data.folder": str(folder), **fields})
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "run", config)
        assert not (tmp_path / "run").exists()

    refused("is of body walker, not cheetah", body="cheetah")
    refused(r"has action .*6.*, but quadruped needs .*12", {"body": "quadruped"}, body="quadruped")
    refused("holds 1 episode files, the longest valid one of 7 rows, but config.train.length=16", rows=7)
    refused("more than config.data.capacity=100", **{"data.capacity": 100})
    (tmp_path / "data" / "0.ep").write_bytes(b"BiTrows1 not a table")
    config = make_config("walker", "debug")
    config.data.folder = str(tmp_path / "data")
    with pytest.raises(ValueError, match="holds 1 episode files, the longest valid one of 0 rows"):
        session.check_inputs(tmp_path / "run", config)


@pytest.mark.parametrize("field, value", [("data.capacity", 400), ("train.length", 512)])
def test_episodes_that_will_be_too_short_or_too_long_are_named_before_they_are_collected(tmp_path, field, value):
    config = make_config("walker", "debug")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=f"episodes of walker have 501 rows.*config.{field}={value}"):
        train(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
