"""Tables on disk: exact, whole or not at all, and safe to open whatever they hold."""

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard

from bitagent_jax.data.records import CHUNK, CorruptFile, open_records, write_records
from bitagent_jax.files import write_atomically


@pytest.fixture
def table(tmp_path):
    """Return the path and the rows of a table of two chunks and a half."""
    rng, rows = np.random.default_rng(0), 2 * CHUNK + CHUNK // 2
    image = rng.integers(0, 9, (rows, 4, 5, 3), np.uint8)
    arrays = {"image": image, "x": rng.standard_normal((rows, 2), np.float32), "flag": rng.random(rows) > 0.5}
    write_records(tmp_path / "x", arrays, {"label": "a"})
    return tmp_path / "x", arrays


def test_every_range_of_rows_comes_back_as_it_went(table):
    path, arrays = table
    opened = open_records(path)
    assert opened.meta == {"label": "a"} and opened.rows == len(arrays["x"])
    for start in range(opened.rows):
        for stop in range(start + 1, opened.rows + 1):
            out = {name: np.empty_like(array[start:stop]) for name, array in arrays.items()}
            opened.read_into(out, start)
            for name, array in arrays.items():
                np.testing.assert_array_equal(out[name], array[start:stop], strict=True)
    for name, array in opened.read().items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


@pytest.mark.parametrize("start", [-1, 2 * CHUNK + CHUNK // 2])
def test_rows_beyond_the_table_are_an_error(table, start):
    with pytest.raises(ValueError, match=f"rows {start} to {start + 1} of a table of 40"):
        open_records(table[0]).read_into({"x": np.empty((1, 2), np.float32)}, start)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_no_wrong_byte_is_read_as_data_or_as_another_error(table):
    path, arrays = table
    data, rng, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(500):
        at = rng.integers(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.integers(8))]) + data[at + 1 :])
        try:
            out = open_records(path).read()
        except CorruptFile as error:
            assert error.path == path
            noticed += 1
            continue
        for name, array in arrays.items():
            np.testing.assert_array_equal(out[name], array)
    assert noticed > 450


@pytest.mark.parametrize("size", [0, 5, 16, 100, -200, -1])
def test_truncated_files_are_noticed_at_opening(table, size):
    path, _ = table
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFile, match=str(path)):
        open_records(path)


def forge(path, change, body=b""):
    """Write a file whose checksums are right and whose header says what it likes."""
    header = dict(rows=4, fields={"x": ["uint8", [2]]}, sizes=[len(body)], crc=0, meta={}) | change
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<8sII", b"BiTrows1", len(text), zlib.crc32(text)) + text + body)
    return path


LIES = {
    "object": {"fields": {"x": ["object", [2]]}},
    "void": {"fields": {"x": ["V99999999999", [2]]}},
    "negative": {"fields": {"x": ["uint8", [-2]]}},
    "huge": {"rows": 1 << 62, "sizes": [0]},
    "wide": {"fields": {"x": ["uint8", [1 << 40]]}},
    "fraction": {"rows": 4.0},
    "truth": {"rows": True},
    "few chunks": {"rows": 40},
    "long chunk": {"sizes": [99]},
    "meta": {"meta": []},
    "no fields": {"fields": {}},
    "list": {"fields": [1]},
    "none": {"sizes": None},
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_headers_reserve_no_memory(tmp_path, lie):
    with pytest.raises(CorruptFile):
        open_records(forge(tmp_path / "x", LIES[lie]))


def test_a_chunk_that_would_unpack_to_more_than_its_rows_is_not_unpacked(tmp_path):
    opened = open_records(forge(tmp_path / "x", {}, zstandard.compress(bytes(1 << 28))))
    tracemalloc.start()
    with pytest.raises(CorruptFile, match="chunk 0 does not hold 8 bytes"):
        opened.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
