"""Where an encoder's files are: a local folder, or a repository of the Hugging Face Hub through its cache.

Only safetensors and npz are read. What is missing is an error that names the file, where it was looked for, and
the command that gets it.
"""

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SMALL = ("*.json", "*.txt", "*.model")
"""Files beside the weights: configs, vocabularies, tokenizers."""
TENSORS = ("model*.safetensors", "model.safetensors.index.json")


class WeightsError(ValueError):
    """An encoder's files are missing, gated, incomplete or damaged."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclass(frozen=True)
class Source:
    """An encoder's folder.

    Attributes:
        encoder: the encoder's name.
        weights: the folder or repository as the user wrote it.
        folder: where the files are.
        example: a repository that has such files.
    """

    encoder: str
    weights: str
    folder: Path
    example: str

    def __str__(self) -> str:
        return f"{self.encoder} weights in {self.folder}"

    def path(self, name: str) -> Path:
        """Return the path of a file; WeightsError if it is not there."""
        path = self.folder / name
        if not path.is_file():
            raise WeightsError(f"{self.encoder}: {name} is not in {self.folder}; to get it: {self.command()}")
        return path

    def json(self, name: str, optional: bool = False) -> dict[str, Any]:
        """Read a JSON file; {} if it is optional and not there. WeightsError if it is missing or damaged."""
        if optional and not (self.folder / name).is_file():
            return {}
        path = self.path(name)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise WeightsError(f"{self.encoder}: {path} is not JSON ({error}); to get it: {self.command()}") from error

    @property
    def local(self) -> bool:
        """Whether the user named a folder, not a repository."""
        return Path(self.weights).expanduser().is_dir()

    def command(self) -> str:
        """Return the shell command that downloads the files."""
        if self.local:
            return f"hf download {self.example} --local-dir {self.folder}"
        return f"hf download {self.weights}"

    def tensor_files(self) -> list[Path]:
        """List the files with weights: one safetensors file, its shards, or one npz; WeightsError if there is none."""
        if (self.folder / "model.safetensors.index.json").is_file():
            shards = self.json("model.safetensors.index.json").get("weight_map", {}).values()
            return [self.path(name) for name in sorted(set(shards))]
        found = sorted(self.folder.glob("*.safetensors"))
        named = [path for path in found if path.name == "model.safetensors"]
        found = named or found or sorted(self.folder.glob("*.npz"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise WeightsError(f"{self.encoder}: which of {names} in {self.folder}? name it model.safetensors")
        return found or [self._no_tensors()]

    def _no_tensors(self) -> Path:
        pickles = sorted(path for end in ("pt", "pth", "bin") for path in self.folder.glob(f"*.{end}"))
        if pickles:
            raise WeightsError(
                f"{self.encoder}: {self.folder} holds {pickles[0].name}, a pickle, which is never read at run time; "
                f"convert it once: bitagent convert {pickles[0]} {self.folder / 'model.safetensors'}"
            )
        expected = "model.safetensors (nor shards with model.safetensors.index.json, nor one *.npz)"
        get = self.command()
        if not self.local:  # a repository is looked through for safetensors only
            get += f" --local-dir {self.encoder}, and if it has only .pt or .bin, bitagent convert that file"
        raise WeightsError(f"{self.encoder}: no {expected} in {self.folder}; to get it: {get}")

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every tensor's name and values, one at a time; WeightsError if a file is damaged."""
        for path in self.tensor_files():
            try:
                yield from _read(path)
            except (OSError, ValueError, zipfile.BadZipFile, _safetensors_error()) as error:
                raise WeightsError(
                    f"{self.encoder}: {path} is damaged or incomplete ({error}); to get it again: {self.command()}"
                ) from error

    def digest(self) -> str:
        """Hash the weights and every small file beside them that could change an embedding (SHA-256)."""
        small = {path for pattern in SMALL for path in self.folder.glob(pattern)}
        total = hashlib.sha256()
        for path in sorted(small | set(self.tensor_files()), key=lambda path: path.name):
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


def locate(encoder: str, weights: str, examples: Sequence[str], tensors: Sequence[str] = TENSORS) -> Source:
    """Find an encoder's folder, downloading a repository into the Hub's cache if it is not there yet.

    Args:
        encoder: the encoder's name, for the errors.
        weights: a local folder or the id of a repository, ``owner/name``.
        examples: repositories that are known to fit.
        tensors: patterns of the files with weights.

    Raises:
        WeightsError: nothing was named, or it is neither, or it cannot be had.
    """
    if not weights:
        raise WeightsError(
            f"mllm.encoder={encoder} needs its weights: set mllm.weights to a folder or to a repository of the "
            f"Hugging Face Hub, for example {' or '.join(examples)}"
        )
    folder = Path(weights).expanduser()
    if folder.is_file():
        raise WeightsError(f"{encoder}: mllm.weights is a folder, not a file: write {folder.parent}")
    if folder.is_dir():
        return Source(encoder, weights, folder, examples[0])
    if not re.fullmatch(r"[\w-]+/[\w.-]+", weights):
        raise WeightsError(
            f"{encoder}: {weights!r} is neither a folder (looked for {folder.absolute()}) nor the id of a "
            f"repository, owner/name, for example {examples[0]}"
        )
    return Source(encoder, weights, _snapshot(encoder, weights, [*SMALL, *tensors]), examples[0])


def _snapshot(encoder: str, repo: str, patterns: list[str]) -> Path:
    """Return a repository's folder in the cache: as it lies there if it has weights, else downloaded."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, WeightsError):  # not there, or without weights: download
        folder = Path(snapshot_download(repo, local_files_only=True))
        Source(encoder, repo, folder, repo).tensor_files()
        return folder
    where = f"looked in the cache {constants.HF_HUB_CACHE}"
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except GatedRepoError as error:
        raise WeightsError(
            f"{encoder}: {repo} is gated ({where}): accept its conditions on its page, then: hf auth login && "
            f"hf download {repo}"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(f"{encoder}: there is no folder and no public repository {repo!r} ({where})") from error
    except (OSError, LocalEntryNotFoundError) as error:
        raise WeightsError(
            f"{encoder}: {repo} is not complete on this machine ({where}) and the Hub was not reached; on a machine "
            f"with a connection: hf download {repo}"
        ) from error


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def _read(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    if path.suffix == ".npz":
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield from ((name, file[name]) for name in file.files)
        return
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        yield from ((name, file.get_tensor(name)) for name in file.keys())
