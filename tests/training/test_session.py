"""Which rows a run embeds, and what it checks before its folder is made."""

from types import SimpleNamespace

import numpy as np
import pytest

from bitagent_jax.config import make_config
from bitagent_jax.training import session
from bitagent_jax.training.loops import train


@pytest.mark.parametrize("names, stride", [("debug", 0), ("debug,hold", 1)])
def test_rollouts_that_hold_an_embedding_need_one_in_every_row(names, stride, monkeypatch):
    calls = []
    monkeypatch.setattr(session, "embed_folder", lambda folder, encoder, **options: calls.append(options))
    run = SimpleNamespace(_precomputed=False, config=make_config("walker", names), encoder=None)
    session.Session._embed(run, "folder", share=(1, 2))
    assert calls == [{"stride": stride, "share": (1, 2)}]


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
