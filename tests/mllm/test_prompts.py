"""Every kind of prompt becomes one unit vector, and what is none is named before anything is embedded."""

import numpy as np
import pytest
from PIL import Image

from bitagent_jax.mllm import embedded
from bitagent_jax.mllm.precomputed import Precomputed
from bitagent_jax.mllm.prompts import check_prompt, embed_prompt, embed_prompts, prompt_key, prompt_name
from bitagent_jax.video import write_mp4


@pytest.fixture(scope="module")
def encoder():
    return embedded.init(seed=0)


@pytest.fixture(scope="module")
def clip():
    """Return 29 frames of a square that crosses the picture and turns from red to blue."""
    frames = np.full((29, 64, 64, 3), 200, np.uint8)
    for t, frame in enumerate(frames):
        frame[20:40, 1 + t : 21 + t] = (255 - 9 * t, 30, 9 * t)
    return frames


def unit(x):
    return x / np.linalg.norm(x)


def test_a_sentence_is_what_the_encoder_makes_of_it(encoder):
    told = embed_prompts(encoder, ["run fast", "stand up"])
    np.testing.assert_array_equal(told, encoder.embed_text(["run fast", "stand up"]))
    assert told.dtype == np.float32


def test_paraphrases_are_averaged_however_they_are_written(encoder):
    each = encoder.embed_text(["run fast", "sprint", "hurry"])
    for prompt in ("run fast | sprint | hurry", ["run fast", "sprint", "hurry"], ("run fast", "sprint", "hurry")):
        np.testing.assert_allclose(embed_prompt(encoder, prompt), unit(each.mean(0)), atol=1e-6)
    np.testing.assert_allclose(embed_prompt(encoder, ["run fast | sprint", "hurry"]), unit(each.mean(0)), atol=1e-6)


def test_a_clip_is_seen_from_its_first_frame_to_its_last(encoder, clip, tmp_path):
    picks = [0, 4, 8, 12, 16, 20, 24, 28]
    seen = encoder.embed_video(clip[picks][None])[0]
    np.savez(tmp_path / "walk.npz", clip)
    np.savez(tmp_path / "genrl.npz", observation=np.moveaxis(clip, 3, 1), reward=np.zeros(29))
    for prompt in (clip, str(tmp_path / "walk.npz"), str(tmp_path / "genrl.npz")):
        np.testing.assert_array_equal(embed_prompt(encoder, prompt), seen)
    frames = [Image.fromarray(frame) for frame in clip]
    frames[0].save(tmp_path / "walk.GIF", "GIF", save_all=True, append_images=frames[1:], duration=40, loop=0)
    write_mp4(tmp_path / "walk.mp4", clip)
    first = encoder.embed_video(clip[None, :8])[0]
    for name in ("walk.mp4", "walk.GIF"):  # colours are a little off there
        told = embed_prompt(encoder, str(tmp_path / name))
        assert np.linalg.norm(told - seen) < 0.5 * np.linalg.norm(told - first), name
    short = encoder.embed_video(clip[None, [0, 0, 1, 1, 1, 1, 2, 2]])[0]
    np.testing.assert_array_equal(embed_prompt(encoder, clip[:3]), short)


def test_a_picture_is_a_clip_in_which_nothing_moves(encoder, clip, tmp_path):
    Image.fromarray(clip[5]).save(tmp_path / "pose.png")
    Image.fromarray(clip[5]).convert("RGBA").save(tmp_path / "clear.PNG")
    still = encoder.embed_video(np.repeat(clip[None, 5:6], 8, 1))[0]
    for prompt in (clip[5], clip[5:6], str(tmp_path / "pose.png"), str(tmp_path / "clear.PNG")):
        np.testing.assert_array_equal(embed_prompt(encoder, prompt), still)


def test_an_embedding_is_scaled_to_length_one(encoder, tmp_path):
    vector = np.arange(encoder.embed_dim) - 3.0
    np.save(tmp_path / "task.npy", vector[None])
    for prompt in (vector, vector.astype(np.float32), str(tmp_path / "task.npy")):
        told = embed_prompt(encoder, prompt)
        assert told.dtype == np.float32 and told.shape == vector.shape
        np.testing.assert_allclose(told, unit(vector), atol=1e-6)
    both = embed_prompt(encoder, f"run fast | {tmp_path / 'task.npy'}")
    np.testing.assert_allclose(both, unit(encoder.embed_text(["run fast"])[0] + unit(vector)), atol=1e-6)


@pytest.mark.parametrize("prompt", ["walk like Mr. Smith", "stand.", "run, e.g. fast", "走れ", "a|b", "1.50"])
def test_sentences_with_dots_and_bars_are_sentences(encoder, prompt):
    np.testing.assert_array_equal(embed_prompt(encoder, prompt), encoder.embed_text([prompt])[0])


def test_a_paragraph_is_a_sentence_too():
    paragraph = "walk forward slowly and with care, " * 20  # longer than the name of a file may be
    check_prompt(paragraph)
    with pytest.raises(ValueError, match="no file"):
        check_prompt(paragraph + ".mp4")


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "must be a sentence in words"),
        (" \n", "must be a sentence in words"),
        ("run | ", "must be a sentence in words.*got 'run | '"),
        ([], "a sentence, a file, an array or a list of them, got \\[\\]"),
        (["run", None], "a sentence, a file, an array or a list of them, got None"),
        (3, "got 3"),
        ("clips/wlk.mp4", "no file '.*wlk.mp4' for a prompt. Did you mean 'walk.mp4'"),
        ("clips/jump.gif", "no file '.*jump.gif' for a prompt.$"),
        ("clips/walk.mp5", "file of the prompt '.*walk.mp5': '.mp5'. Did you mean '.mp4'.*Allowed: .avi"),
        ("run | clips/notes", "unknown kind of file"),
    ],
)
def test_what_is_no_prompt_is_named_without_an_encoder(prompt, message, tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "walk.mp4").write_bytes(b"x")
    (tmp_path / "clips" / "notes").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_prompt(prompt)


def _other(path):
    np.savez(path, first=np.zeros(3), second=np.zeros(3))


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("x.mp4", lambda path: path.write_bytes(b"no video"), "x.mp4 is no video that can be read: "),
        ("x.gif", lambda path: path.write_bytes(b""), "x.gif is no video that can be read: "),
        ("x.png", lambda path: path.write_bytes(b"no picture"), "x.png is no picture that can be read: "),
        ("x.npy", lambda path: path.write_bytes(b"no array"), "x.npy cannot be read as a prompt: "),
        ("x.npz", lambda path: path.write_bytes(b"PK no archive"), "x.npz cannot be read as a prompt: "),
        ("x.npz", _other, "it holds first, second, but none of frames, image, observation"),
        ("x.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "x.npy cannot be read as a prompt"),
        ("x.npy", lambda path: np.save(path, np.ones(512)), r"floats \[\d+\], a clip, .*, not float64 \[512\]"),
        ("x.npy", lambda path: np.save(path, np.ones((8, 4, 4, 3))), r"not float64 \[8, 4, 4, 3\]"),
        ("x.npy", lambda path: np.save(path, np.ones((0, 4, 4, 3), np.uint8)), r"not uint8 \[0, 4, 4, 3\]"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(encoder, name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        embed_prompt(encoder, str(tmp_path / name))


def test_vectors_without_a_direction_are_refused(encoder):
    vector = np.ones(encoder.embed_dim)
    for prompt in (0 * vector, np.nan * vector, [vector, -vector]):
        with pytest.raises(ValueError, match="which has no direction"):
            embed_prompt(encoder, prompt)


def test_an_archive_that_would_unpack_to_too_much_is_not_unpacked(encoder, tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((300, 64, 64, 3), np.uint8))
    monkeypatch.setattr("bitagent_jax.mllm.prompts._MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="would unpack to"):
        embed_prompt(encoder, str(tmp_path / "bomb.npz"))


def test_nothing_is_embedded_if_one_of_the_prompts_is_wrong(encoder, monkeypatch):
    monkeypatch.setattr(embedded.EmbeddedEncoder, "embed_text", lambda *_: pytest.fail("embedded"))
    with pytest.raises(ValueError, match="no file 'none.npy'"):
        embed_prompts(encoder, ["run", "none.npy"])


def test_names_and_keys_tell_prompts_apart(clip):
    assert prompt_name("run") == "run" and prompt_name(["run", "a.mp4"]) == "run | a.mp4"
    assert prompt_name(clip) == "uint8 [29, 64, 64, 3]"
    prompts = ["run", ["run"], ["run", "go"], clip, clip[::-1], clip[0], clip.astype(np.float32)]
    assert len({prompt_key(prompt) for prompt in prompts}) == len(prompts)
    assert prompt_key(clip) == prompt_key(clip.copy())


def test_without_an_encoder_only_embeddings_are_prompts(clip):
    none = Precomputed("genrl-clip_video", 4)
    np.testing.assert_array_equal(embed_prompt(none, np.array([0.0, 3.0, 0.0, 4.0])), np.float32([0, 0.6, 0, 0.8]))
    with pytest.raises(ValueError, match="the sentence 'run' cannot be embedded; a prompt must be .*genrl-clip"):
        embed_prompt(none, "run")
    with pytest.raises(ValueError, match="clips and pictures cannot be embedded"):
        embed_prompt(none, clip)
    with pytest.raises(ValueError, match="episodes cannot be embedded"):
        none.embed_windows(clip)
