"""What may tell a policy its task, and the one function that makes an embedding of it.

A sentence           "walk fast"
Paraphrases          "run fast | sprint", in Python also ["run fast", "sprint"]: the mean, of unit length again
A clip               "walk.mp4" or another name out of ``VIDEOS``, uint8 [T,H,W,3] in "walk.npz" or as an array: as many
                     frames as the encoder takes, evenly from the first to the last
A picture            "pose.png" or another name out of ``IMAGES``, uint8 [H,W,3]: a clip in which nothing moves
An embedding         floats [D] in "task.npy" or as an array: itself, of unit length

A string without blanks that ends like a file is a file, and must exist. The parts of paraphrases may be of any kind.

Clips and pictures pass the aligner as sentences do, although they lie in the space of videos already: it learns to
return an embedding of a video from a noisy one, so it should move one without noise little.
"""

import difflib
import hashlib
import os
import re
import zipfile
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from bitagent_jax.errors import unknown
from bitagent_jax.mllm.encoder import Encoder
from bitagent_jax.video import VIDEOS, read_video, spread

Prompt = str | np.ndarray | Sequence["Prompt"]
SEPARATOR = " | "
IMAGES = (".png", ".jpg", ".jpeg")
ARRAYS = (".npy", ".npz")
FILES = (*VIDEOS, *IMAGES, *ARRAYS)
_FIELDS = ("frames", "image", "observation")  # of an npz with more than one array
_MAX_BYTES = 1 << 31


def embed_prompts(encoder: Encoder, prompts: Sequence[Prompt]) -> np.ndarray:
    """Embed K prompts; returns float32 [K, D], unit norm. See ``embed_prompt``."""
    for prompt in prompts:
        check_prompt(prompt)
    return np.stack([embed_prompt(encoder, prompt) for prompt in prompts])


def embed_prompt(encoder: Encoder, prompt: Prompt) -> np.ndarray:
    """Embed one prompt, see the table above; returns float32 [D], unit norm.

    Raises:
        ValueError: it is blank, names a file that is missing or unreadable, or is no picture, clip or embedding of
            the encoder's width; the encoder cannot embed its kind.
    """
    parts = _parts(prompt)
    vectors = [_embed_part(encoder, part) for part in parts]
    return vectors[0] if len(vectors) == 1 else _unit(np.mean(vectors, 0), f"the mean of {prompt_name(prompt)!r}")


def check_prompt(prompt: Prompt) -> None:
    """Raise ValueError if a prompt is blank or names a file that is none of a prompt's or is not there."""
    for part in _parts(prompt):
        if isinstance(part, str):
            _file(part)


def prompt_name(prompt: Prompt) -> str:
    """Return a prompt as one line for tables and file names: as it is written on the command line."""
    if isinstance(prompt, np.ndarray):
        return f"{prompt.dtype} {list(prompt.shape)}"
    return prompt if isinstance(prompt, str) else SEPARATOR.join(map(prompt_name, prompt))


def prompt_key(prompt: Prompt) -> Hashable:
    """Return what tells a prompt from all others in a dict; an array is told by its content, a file by its name."""
    if isinstance(prompt, np.ndarray):
        return prompt.dtype.str, prompt.shape, hashlib.sha256(np.ascontiguousarray(prompt)).digest()
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return prompt
    return tuple(map(prompt_key, prompt))


def _parts(prompt: Prompt) -> list[str | np.ndarray]:
    """Return the sentences, files and arrays that a prompt consists of, blank ones refused."""
    if isinstance(prompt, np.ndarray):
        return [prompt]
    if not isinstance(prompt, str):
        if not isinstance(prompt, Sequence) or not len(prompt):
            raise ValueError(f"a prompt must be a sentence, a file, an array or a list of them, got {prompt!r}")
        return [part for inner in prompt for part in _parts(inner)]
    parts = [part.strip() for part in prompt.split(SEPARATOR)] if SEPARATOR in prompt else [prompt]
    if not all(part.strip() for part in parts):
        raise ValueError(f"a prompt must be a sentence in words, for example 'walk fast clean', got {prompt!r}")
    return parts


def _file(text: str) -> Path | None:
    """Return the file that a part of a prompt names; None if it is a sentence."""
    path, ending = Path(text), Path(text).suffix.lower()
    if ending in FILES:
        if os.path.isfile(path):  # unlike Path.is_file, no error for a text too long to be a name
            return path
        beside = [file.name for file in path.parent.glob("*") if file.suffix.lower() in FILES]
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
        raise ValueError(f"no file {text!r} for a prompt." + (f" Did you mean {near[0]!r}?" if near else ""))
    if os.path.isfile(path) or re.fullmatch(r"\S+\.[A-Za-z]\w{1,4}", text):
        raise unknown(f"kind of file of the prompt {text!r}:", ending, FILES)
    return None


def _embed_part(encoder: Encoder, part: str | np.ndarray) -> np.ndarray:
    if isinstance(part, np.ndarray):
        return _embed_array(encoder, part, "the prompt")
    path = _file(part)
    if path is None:
        return encoder.embed_text([part])[0]
    ending = path.suffix.lower()
    if ending in VIDEOS:
        return encoder.embed_video(read_video(path, encoder.num_frames)[None])[0]
    return _embed_array(encoder, _read_image(path) if ending in IMAGES else _read_array(path), str(path))


def _embed_array(encoder: Encoder, array: np.ndarray, what: str) -> np.ndarray:
    if np.issubdtype(array.dtype, np.floating) and array.shape in ((encoder.embed_dim,), (1, encoder.embed_dim)):
        return _unit(array.reshape(-1), what)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"{what} must be an embedding, floats [{encoder.embed_dim}], a clip, uint8 [T, H, W, 3], or a picture, "
            f"uint8 [H, W, 3], not {array.dtype} {list(array.shape)}"
        )
    clip = array[None] if array.ndim == 3 else array
    return encoder.embed_video(clip[spread(len(clip), encoder.num_frames)][None])[0]


def _unit(vector: np.ndarray, what: str) -> np.ndarray:
    length = np.linalg.norm(vector.astype(np.float64))
    if not np.isfinite(length) or length < 1e-6:
        raise ValueError(f"{what} is an embedding of length {length}, which has no direction")
    return (vector / length).astype(np.float32)


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error


def _read_array(path: Path) -> np.ndarray:
    """Read an npy, or of an npz its only array or the one of ``_FIELDS``; pictures with channels first are turned."""
    try:
        with path.open("rb") as file:
            _check_size(path)
            loaded = np.load(file, allow_pickle=False)
            if path.suffix.lower() == ".npz":
                named = [name for name in _FIELDS if name in loaded.files]
                if len(loaded.files) != 1 and not named:
                    held = ", ".join(loaded.files) or "nothing"
                    raise ValueError(f"it holds {held}, but none of {', '.join(_FIELDS)}")
                loaded = loaded[named[0] if named else loaded.files[0]]
    except (OSError, ValueError, LookupError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a prompt: {error}") from error
    turned = loaded.dtype == np.uint8 and loaded.ndim == 4 and loaded.shape[1] == 3 != loaded.shape[-1]
    return np.moveaxis(loaded, 1, -1) if turned else loaded


def _check_size(path: Path) -> None:
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MAX_BYTES:
            raise ValueError(f"it would unpack to {size} bytes, more than {_MAX_BYTES >> 30} GiB")
