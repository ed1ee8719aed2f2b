"""What a run was told stays with it; and runs without any encoder."""

import numpy as np
import pytest

from bitagent_jax import cli
from bitagent_jax.config import make_config, validate
from bitagent_jax.inference import load
from bitagent_jax.mllm import embedded
from bitagent_jax.mllm.precomputed import Precomputed
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunError, RunFolder
from bitagent_jax.training.told import known, read_told, tell


@pytest.fixture(scope="module")
def encoder():
    return embedded.init(seed=0)


def test_prompts_are_embedded_once_and_then_read(encoder, tmp_path):
    path, vector = tmp_path / "prompts.npz", np.eye(encoder.embed_dim)[0]
    np.save(tmp_path / "task.npy", vector)
    prompts = ("run fast | sprint", str(tmp_path / "task.npy"))
    first = tell(path, prompts, encoder, primary=False)
    assert not path.exists() and first.embeddings.shape == (2, encoder.embed_dim)
    tell(path, prompts, encoder)
    (tmp_path / "task.npy").unlink()
    again = tell(path, prompts, encoder)
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    assert again.prompts == prompts and again.embeddings.dtype == np.float32
    np.testing.assert_array_equal(known(path, encoder)[prompts[1]], vector)


def test_another_encoder_other_prompts_and_damage_are_refused(encoder, tmp_path):
    path = tmp_path / "prompts.npz"
    assert known(path, encoder) == {}
    tell(path, ["run"], encoder)
    other = embedded.init(seed=1)
    with pytest.raises(RunError, match=f"another encoder: .*{encoder.fingerprint}.*now have {other.fingerprint}"):
        tell(path, ["run"], other)
    assert known(path, other) == {}
    with pytest.raises(RunError, match=r"was told \['run'\], not \['stand'\]"):
        tell(path, ["stand"], encoder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="prompts.npz is damaged"):
        read_told(path)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("data.folder", "", "needs config.data.folder of episodes with embeddings"),
        ("prompts", (), "needs config.prompts of .npy files"),
        ("data.online_every", 5, "needs config.data.online_every to be 0"),
        ("imagination.semantics", "hold", "needs config.imagination.semantics to be decode"),
    ],
)
def test_what_a_run_without_an_encoder_needs_is_checked_first(field, value, message):
    config = make_config("walker", "debug")
    fits = {"mllm.encoder": "precomputed", "data.folder": "x", "prompts": ("a.npy",), "tasks": ()}
    config.update_from_flattened_dict(fits)
    validate(config)
    config.update_from_flattened_dict({"tasks": ("walker_run",), field: value})
    with pytest.raises(ValueError, match=message):
        validate(config)


@pytest.fixture(scope="module")
def genrl(tmp_path_factory):
    """Return a folder with two episodes in GenRL's format, with embeddings of width 512, and with two prompts."""
    folder, rng, at = tmp_path_factory.mktemp("genrl"), np.random.default_rng(0), np.arange(30)
    for number in range(2):
        clip = rng.standard_normal((30, 512)).astype(np.float32)
        clip = np.where(at[:, None] < 7, 0, clip / np.linalg.norm(clip, axis=1, keepdims=True)).astype(np.float32)
        np.savez(
            folder / f"{number}.npz", observation=rng.integers(0, 256, (30, 3, 64, 64), np.uint8), clip_video=clip,
            action=rng.uniform(-1, 1, (30, 6)).astype(np.float32), reward=np.zeros((30, 1), np.float32),
            is_first=at == 0, is_last=at == 29, is_terminal=at < 0,
        )  # fmt: skip
    for name in ("stand", "run"):
        np.save(folder / f"{name}.npy", rng.standard_normal(512).astype(np.float32))
    return folder


@pytest.mark.slow
def test_genrls_episodes_train_a_run_without_any_encoder(genrl, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embedded, "load", lambda *_: pytest.fail("an encoder was loaded"))
    cli.main(["import", str(genrl), str(tmp_path / "episodes"), "--format", "genrl", "--body", "walker"])
    shown = capsys.readouterr().out.split()
    options = [word for word in shown if word.startswith("--config")]
    assert options == ["--config.mllm.encoder=precomputed", "--config.mllm.weights=genrl-clip_video:512"]

    fields = {"train__stage1_steps": 2, "train__stage2_steps": 1, "train__log_every": 1, "data__online_every": 0}
    files = f"{genrl}/stand.npy", f"{genrl}/run.npy"
    fields |= {"data__folder": tmp_path / "episodes", "tasks": (), "prompts": files}
    run = tmp_path / "run"
    wrong = {f"--config.mllm.weights={weights}": why for weights, why in (("genrl-clip:512", "Did you mean 'genrl-clip_"
             "video:512'"), ("genrl-clip_video:256", "Did you mean"), ("512", "needs KEY:WIDTH"))}  # fmt: skip
    wrong[f"--config.prompts=('{genrl}/stand.npy','{genrl}/rum.npy')"] = "Did you mean 'run.npy'"
    for option, why in wrong.items():
        with pytest.raises(SystemExit):
            cli.main(["train", str(run), *command.settings(**fields), *options, option])
        assert why in capsys.readouterr().err and not run.exists()
    cli.main(["train", str(run), *command.settings(**fields), *options])
    stored = read_told(RunFolder.load(run).prompts)
    assert stored.embeddings.shape == (2, 512) and stored.fingerprint == "genrl-clip_video"
    assert {path.name.split(".")[-2] for path in (tmp_path / "episodes").glob("*.emb")} == {"genrl-clip_video"}

    vector = np.load(genrl / "run.npy")
    (genrl / "run.npy").unlink()
    agent = load(run)
    image = np.zeros((64, 64, 3), np.uint8)
    np.testing.assert_array_equal(agent.act(image, stored.prompts[1])[0], agent.act(image, vector)[0])
    with pytest.raises(ValueError, match="the sentence 'run fast' cannot be embedded"):
        agent.act(image, "run fast")

    cli.main(["train", str(run), "--config.train.stage2_steps=2"])
    assert Checkpoints(run / "checkpoints").latest_step() == 4


def test_a_stand_in_has_a_key_and_a_width():
    from bitagent_jax.mllm.encoder import Encoder, load_encoder

    encoder = load_encoder("precomputed", "genrl-clip_video:512")
    assert isinstance(encoder, Encoder) and isinstance(encoder, Precomputed)
    assert (encoder.fingerprint, encoder.embed_dim) == ("genrl-clip_video", 512)
