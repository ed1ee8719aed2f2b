"""What a run was told, embedded: kept in its folder, so that it goes on, and acts, without a prompt's files."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitagent_jax.files import write_atomically
from bitagent_jax.mllm.encoder import Encoder
from bitagent_jax.mllm.prompts import embed_prompts
from bitagent_jax.training.run import RunError


class Told(NamedTuple):
    """Prompts as the config writes them, their embeddings float32 ``[K, D]``, and the encoder's fingerprint."""

    prompts: tuple[str, ...]
    embeddings: np.ndarray
    fingerprint: str

    @property
    def known(self) -> dict[str, np.ndarray]:
        """Prompt -> embedding ``[D]``."""
        return dict(zip(self.prompts, self.embeddings, strict=True))


def tell(path: Path, prompts: Sequence[str], encoder: Encoder, primary: bool = True) -> Told:
    """Embed a run's prompts, or, if it has begun, read what they were then.

    Args:
        path: the run's ``prompts.npz``, written by the ``primary`` process if it is not there.
        prompts: the sentences and files of the config.
        encoder: the run's.

    Raises:
        RunError: the run began with other prompts, or with an encoder whose embeddings differ.
        ValueError: a prompt cannot be embedded.
    """
    if path.exists():
        told = read_told(path)
        if told.fingerprint != encoder.fingerprint:
            raise RunError(
                f"{path.parent} began with another encoder: the embeddings of its prompts and episodes have the key "
                f"{told.fingerprint}, those of mllm.encoder={encoder.name} now have {encoder.fingerprint} (other "
                "weights, preprocessing or precision); use a new folder"
            )
        if told.prompts != tuple(prompts):
            raise RunError(f"{path.parent} was told {list(told.prompts)}, not {list(prompts)}; use a new folder")
        return told
    told = Told(tuple(prompts), embed_prompts(encoder, prompts), encoder.fingerprint)
    if primary:
        write_atomically(path, lambda file: np.savez(file, **told._asdict()))
    return told


def known(path: Path, encoder: Encoder) -> dict[str, np.ndarray]:
    """Return what ``prompts.npz`` holds, if it is there and of this encoder: prompt -> embedding ``[D]``.

    On another device the encoder's precision may differ, and with it every embedding; then there is nothing.
    """
    told = read_told(path) if path.exists() else None
    return told.known if told is not None and told.fingerprint == encoder.fingerprint else {}


def read_told(path: Path) -> Told:
    """Read ``prompts.npz``; RunError if it is damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            prompts, embeddings, fingerprint = (file[name] for name in Told._fields)
        return Told(tuple(map(str, prompts)), embeddings.astype(np.float32).reshape(len(prompts), -1), str(fingerprint))
    except (OSError, ValueError, LookupError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is damaged ({error}): delete it, so that the prompts are embedded again") from error
