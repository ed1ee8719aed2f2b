"""Tokenizers of the ported encoders: those of ``transformers``, read from the encoder's folder."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitagent_jax.mllm.frozen import Tokenize
from bitagent_jax.mllm.sources import Source, WeightsError, first_line

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # one of them holds the vocabulary


def load_tokenizer(source: Source, kind: Any = None, get: str = "") -> Any:
    """Load a folder's tokenizer, of the given class or of the one that the folder names.

    Args:
        source: the folder.
        kind: a class of ``transformers``.
        get: the shell command that downloads its files into ``{folder}``, where they are not those of the weights.

    Raises:
        WeightsError: its files are not there, or a package that it needs is not.
    """
    from transformers import AutoTokenizer

    get = get.format(folder=source.folder) if get else source.command()
    if not any(path for pattern in _FILES for path in source.folder.glob(pattern)):
        why = f"none of {', '.join(_FILES)} is in {source.folder}, so no tokenizer can be made"
        raise WeightsError(f"{source.encoder}: {why}; to get them: {get}")
    try:
        return (kind or AutoTokenizer).from_pretrained(str(source.folder))
    except (OSError, ValueError, ImportError, KeyError) as error:
        why = f"no tokenizer can be made of the files in {source.folder} ({first_line(error)})"
        raise WeightsError(f"{source.encoder}: {why}; to get them: {get}") from error


def padded(tokenizer: Any, length: int, prepare: Callable[[str], str] = str, **options: Any) -> Tokenize:
    """Return a function that tokenizes to one length: longer sentences are cut, shorter ones filled up.

    Args:
        tokenizer: of ``transformers``.
        length: tokens L of every row, special ones included.
        prepare: applied to every sentence first.
        options: for the tokenizer.
    """

    def tokenize(sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        fixed = {"padding": "max_length", "truncation": True, "max_length": length, "return_attention_mask": True}
        fixed["padding_side"] = "right"
        out = tokenizer([prepare(sentence) for sentence in sentences], return_tensors="np", **fixed | options)
        return out["input_ids"].astype(np.int32), out["attention_mask"].astype(bool)

    return tokenize
