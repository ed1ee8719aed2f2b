"""One-off conversion of torch pickles to safetensors, so that no pickle is ever read at run time."""

import zipfile
from pathlib import Path
from typing import Any

from bitagent_jax.mllm.sources import first_line

_WRAPPERS = ("state_dict", "model", "module")


def convert(source: str | Path, destination: str | Path) -> int:
    """Convert a torch checkpoint; only tensors are unpickled, no code in the file is run.

    A state dict inside ``state_dict``, ``model`` or ``module`` is found, and a prefix ``module.`` that all keys
    share is dropped.

    Args:
        source: file of ``torch.save``.
        destination: the safetensors file to write.

    Returns:
        The number of tensors.

    Raises:
        ValueError: torch is not installed, the source is missing, unreadable or holds no tensors, or the
            destination is there already or is no safetensors file.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix != ".safetensors":
        raise ValueError(f"the destination must end in .safetensors, not {destination}")
    if destination.exists():
        raise ValueError(f"{destination} is there already")
    if not source.is_file():
        raise ValueError(f"no file {source}")
    tensors = _tensors(_unpickle(source), source)
    from safetensors.torch import save_file

    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(destination)
    return len(tensors)


def _unpickle(source: Path) -> Any:
    import pickle

    try:
        import torch
    except ImportError as error:
        raise ValueError("converting needs torch: pip install 'bitagent_jax[torch]'") from error
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} cannot be read as plain tensors: {first_line(error)}") from error


def _tensors(loaded: Any, source: Path) -> dict[str, Any]:
    import torch

    for name in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    loaded = loaded if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{source} holds no state dict: no tensors by name, also not in {', '.join(_WRAPPERS)}")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value.clone().contiguous() for name, value in tensors.items()}
