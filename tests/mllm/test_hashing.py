"""Hashed n-grams: the same numbers on every platform and for ever."""

import zlib

import numpy as np

from bitagent_jax.mllm.hashing import BUCKETS, MAX_NGRAMS, hash_sentences, ngrams


def test_ngrams_are_words_pairs_and_letter_triples():
    assert ngrams("Run, fast!") == [
        *("w:run", "w:fast"),
        *("p:^ run", "p:run fast", "p:fast $"),
        *("t:<ru", "t:run", "t:un>", "t:<fa", "t:fas", "t:ast", "t:st>"),
    ]


def test_hashes_are_golden():
    expected = [6802, 3309, 3852, 2137, 3386, 7039, 2771, 1817, 5394, 1796, 5169, 2505]
    row = hash_sentences(["run fast"])[0]
    assert row[:12].tolist() == expected
    assert not row[12:].any()
    assert row[0] == 1 + zlib.crc32(b"w:run") % (BUCKETS - 1)


def test_case_and_punctuation_do_not_matter_but_order_does():
    same = hash_sentences(["Stand up!", "stand  up"])
    assert np.array_equal(*same)
    one, other = hash_sentences(["walk then run", "run then walk"])
    assert not np.array_equal(np.sort(one), np.sort(other))


def test_any_script_has_ngrams_and_long_sentences_are_cut():
    rows = hash_sentences(["走る", "émigré", "word " * 500])
    assert (rows[:2, 0] > 0).all()
    assert rows.shape == (3, MAX_NGRAMS) and (rows[2] > 0).all()
    assert rows.max() < BUCKETS
