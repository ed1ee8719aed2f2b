"""A sentence as hashed n-grams: no vocabulary file, no unknown word, tolerant of inflection and typos."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

BUCKETS = 8192
"""Number of hash buckets; bucket 0 is kept for padding."""
MAX_NGRAMS = 160
"""N-grams kept of one sentence: about 25 words; what follows is cut off."""


def ngrams(sentence: str) -> list[str]:
    """List a sentence's words, pairs of neighbouring words, and the letter triples of each ``<word>``."""
    words = re.findall(r"[^\W_]+", sentence.lower())
    pairs = [f"{left} {right}" for left, right in zip(["^", *words], [*words, "$"], strict=True)]
    triples = [f"<{w}>"[i : i + 3] for w in words for i in range(len(w))]
    return [f"w:{w}" for w in words] + [f"p:{p}" for p in pairs] + [f"t:{t}" for t in triples]


def hash_sentences(sentences: Sequence[str]) -> np.ndarray:
    """Hash sentences into bucket numbers, the same on every platform (CRC-32 of the n-gram's UTF-8 bytes).

    Returns:
        int32 [n, MAX_NGRAMS], values 1 .. BUCKETS-1, padded with 0.
    """
    out = np.zeros((len(sentences), MAX_NGRAMS), np.int32)
    for row, sentence in zip(out, sentences, strict=True):
        ids = [1 + zlib.crc32(gram.encode()) % (BUCKETS - 1) for gram in ngrams(sentence)[:MAX_NGRAMS]]
        row[: len(ids)] = ids
    return out
