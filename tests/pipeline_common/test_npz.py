"""NPZ files of any origin: what is written comes back, what is damaged or hostile is refused."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from pipeline_common.errors import UserError
from pipeline_common.files import npy_header, read_npz, sha256_of_file, write_npz

ARRAYS = {
    "X": np.arange(12, dtype=np.float32).reshape(3, 4),
    "y": np.array([1, 0, 2]),
    "text": np.array(["ab", " c", "日"]),
    "empty": np.zeros((0, 4), dtype=np.float16),
    "scalar": np.array("{}"),
}


def test_npz_round_trip(tmp_path):
    write_npz(tmp_path / "a.npz", ARRAYS)
    read = read_npz(tmp_path / "a.npz", ["X", "text", "empty", "scalar"], "dataset")
    assert set(read) == {"X", "text", "empty", "scalar"}
    for name, array in read.items():
        assert array.dtype == ARRAYS[name].dtype
        assert np.array_equal(array, ARRAYS[name])


def test_equal_arrays_give_equal_bytes(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", ARRAYS)
    os.utime(tmp_path / "a.npz", (0, 0))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    for name, other_layout in {
        "fortran.npz": np.asfortranarray(ARRAYS["X"]),
        "strided.npz": np.repeat(ARRAYS["X"], 2, axis=1)[:, ::2],
    }.items():
        write_npz(tmp_path / name, {**ARRAYS, "X": other_layout})
        assert sha256_of_file(tmp_path / name) == sha256_of_file(tmp_path / "a.npz")
    write_npz(tmp_path / "other.npz", {**ARRAYS, "X": ARRAYS["X"] + 1})
    assert sha256_of_file(tmp_path / "other.npz") != sha256_of_file(tmp_path / "a.npz")


def test_objects_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(tmp_path / "a.npz", {"X": np.array([{"a": 1}], dtype=object)})
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "b.npz", X=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="damaged or not a dataset"):
        read_npz(tmp_path / "b.npz", ["X"], "dataset")


def test_read_npz_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"a\.npz: no such file; expected a dataset"):
        read_npz(tmp_path / "a.npz", ["X"], "dataset")
    write_npz(tmp_path / "a.npz", {"X": np.zeros(2)})
    with pytest.raises(UserError, match="array 'y' is missing; expected a dataset"):
        read_npz(tmp_path / "a.npz", ["X", "y"], "dataset")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half", b"\x80\x04\x95 a pickle"])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="damaged or not a dataset"):
        read_npz(tmp_path / "a.npz", ["X"], "dataset")


def test_a_single_array_under_the_name_of_an_archive_is_refused(tmp_path):
    with (tmp_path / "a.npz").open("wb") as handle:
        np.save(handle, np.zeros(3))
    with pytest.raises(UserError, match="damaged or not a dataset"):
        read_npz(tmp_path / "a.npz", ["X"], "dataset")


def test_a_truncated_archive_is_refused_at_every_length(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"X": np.arange(6.0)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged or not a dataset"):
            read_npz(path, ["X"], "dataset")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_altered_byte_never_gives_other_numbers_or_a_traceback(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"X": ARRAYS["X"], "text": ARRAYS["text"]})
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0x81
        path.write_bytes(altered)
        try:
            read = read_npz(path, ["X", "text"], "dataset")
        except UserError:
            refused += 1
        else:  # a byte that says nothing about the arrays, such as a date
            assert np.array_equal(read["X"], ARRAYS["X"])
            assert np.array_equal(read["text"], ARRAYS["text"])
    assert refused > len(whole) / 2


def write_header(path, shape, n_values_there, compress=zipfile.ZIP_STORED):
    """An archive whose array claims a shape, over so many float64 of zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("X.npy", header.getvalue() + bytes(8 * n_values_there))


@pytest.mark.parametrize("byte", b"\x00'(\n\xff")
def test_a_damaged_header_is_refused_or_says_the_same(byte, tmp_path):
    """Wherever the byte falls in it: NumPy parses the header as Python, whose errors differ by version."""
    path = tmp_path / "a.npz"
    write_header(path, (2, 2), 4)
    whole = path.read_bytes()
    start, end = whole.index(b"\x93NUMPY"), whole.index(b"\n", whole.index(b"\x93NUMPY"))
    n_refused = 0
    for place in range(start, end):
        content = bytearray(whole)
        content[place] = byte
        stream = io.BytesIO(bytes(content[start : end + 1 + 32]))
        try:
            assert npy_header(stream, end + 1 + 32 - start)[0] == (2, 2)
        except ValueError:
            n_refused += 1
    assert n_refused > 10


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**40,), (3, 5), (0, 7), (-1, 4), (2**62, 4)])
def test_a_shape_that_the_file_does_not_fill_is_refused_before_memory_is_taken(shape, tmp_path):
    path = tmp_path / "a.npz"
    write_header(path, shape, 4)
    tracemalloc.start()
    with pytest.raises(UserError, match="damaged or not a dataset"):
        read_npz(path, ["X"], "dataset")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    write_header(path, (2, 2), 4)
    assert np.array_equal(read_npz(path, ["X"], "dataset")["X"], np.zeros((2, 2)))


def test_a_compressed_bomb_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.npz"
    write_header(path, (4 * 10**6,), 4 * 10**6, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(UserError, match=r"array 'X' is compressed; save it by numpy\.savez"):
        read_npz(path, ["X"], "dataset")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
