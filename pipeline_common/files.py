"""Files that are either whole or not there: atomic writes, checked reads, checksums."""

import contextlib
import csv
import hashlib
import json
import math
import os
import re
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline_common.errors import UserError, cannot_write

TEMPORARY = re.compile(r"\..+\.(\d{1,10})\.tmp(\.[^.]*)?")
"""Names of what `atomic_path` and `scratch_folder` leave when their process, group 1, is killed."""


@contextlib.contextmanager
def resumable_folder(path: Path, fingerprint: str, overwrite: bool, what: str, marker: str) -> Iterator[Path]:
    """Yield a hidden sibling of ``path`` that takes its place when the block ends without error.

    After an error or a kill the sibling stays, and the next call with the same fingerprint yields it with
    the files that it holds. So each file in it is to be written atomically. Siblings that other
    fingerprints left go when this one takes its place.

    Args:
        path: the folder to make.
        fingerprint: hexadecimal digest of everything that the files depend on, at least 16 digits.
        overwrite: the user asked for the replacement of one that is there.
        what: what it holds, for the message.
        marker: the file that shows a folder to be one of ours (`check_way`).

    Raises:
        UserError: something stands at ``path`` and may not be replaced, or the folder cannot be made.
    """
    path = path.resolve()
    check_way(path, overwrite, what, marker)
    unfinished = path.with_name(f".{path.name}.{fingerprint[:16]}.tmp")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); choose another --output") from None
    yield unfinished
    for entry in [entry for entry in unfinished.rglob("*") if _is_temporary(entry)]:
        entry.unlink()
    make_way(path, overwrite, what, marker)
    unfinished.replace(path)
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
    for entry in [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name)]:
        shutil.rmtree(entry)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that takes its name when the block ends without error.

    The parent folder is made where it is missing. After an error the temporary file is removed and
    ``path`` is what it was before. The suffix is kept, since savers such as matplotlib read it.

    Raises:
        UserError: the file system refuses the write: it is full, read-only, or not ours.
        OSError: any other fault, as it came.
    """
    temporary = path.with_name(temporary_names(path, os.getpid())[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        told = cannot_write(path, error)
        # A source that may not be read is not the fault of the place that is written.
        if told is None or error.filename not in (None, str(temporary), str(path), str(path.parent)):
            raise
        raise told from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden sibling of ``path`` that is deleted when the block ends, whatever is in it then.

    On the same disk as ``path``, so that what was made in it takes its place by a rename.

    Raises:
        UserError: the file system refuses a write: it is full, read-only, or not ours.
        OSError: any other fault, as it came.
    """
    folder = path.with_name(temporary_names(path, os.getpid())[1])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        told = cannot_write(path, error)
        if told is None:
            raise
        raise told from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_names(path: Path, process: int) -> tuple[str, str]:
    """What a process calls a file before it is ``path``, and a folder before it is."""
    return f".{path.stem}.{process}.tmp{path.suffix}", f".{path.name}.{process}.tmp"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with Unix line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: JSON has none.

    Raises:
        ValueError: a number is not finite; the caller says None where a value does not exist.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        what: what the file should be, for the message ("feature store manifest").

    Raises:
        UserError: the file is missing, unreadable or not JSON, or holds a number that JSON has not (NaN, an
            infinity, one too large).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a character could be written nowhere
        return value
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a {what}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a {what}: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}: not valid JSON ({error.msg}); expected a {what}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); expected a {what}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV (UTF-8, comma, Unix line ends), atomically. None becomes an empty cell.

    What `read_csv` accepts as text comes back from the file as it was, on any version of Python.

    Raises:
        UserError: a cell holds what `read_csv` refuses: a NUL, half a character, or too much text.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        lines = _CsvLines(path, handle)
        # A first name that begins with a byte-order mark would be taken for the file's own, unless quoted.
        marked = str(next(iter(columns), "")).startswith("\ufeff")
        csv.writer(
            lines, lineterminator="\r\n", quoting=csv.QUOTE_ALL if marked else csv.QUOTE_MINIMAL
        ).writerow(columns)
        csv.writer(lines, lineterminator="\r\n").writerows(rows)


class _CsvLines:
    """Takes a CSV writer's rows and puts them into a file with Unix line ends.

    Python before 3.11.9 quotes a line end within a cell only where the writer's own line ends hold it.
    So the writer is told to end lines with both characters, which is undone here.
    """

    def __init__(self, path: Path, handle: IO[str]) -> None:
        self._path = path
        self._handle = handle
        self._n_rows = 0

    def write(self, row: str) -> None:
        """Take one row, line end and all.

        Raises:
            UserError: no reader would take it.
        """
        self._n_rows += 1
        try:
            # Only a row that is too long can hold a cell that is.
            if "\0" in row or len(row) > csv.field_size_limit():
                self._refuse(row)
            self._handle.write(row.removesuffix("\r\n") + "\n")
        except UnicodeEncodeError:
            raise self._error("half a character, which UTF-8 has not") from None

    def _refuse(self, row: str) -> None:
        if "\0" in row:
            raise self._error("a NUL")
        try:
            list(csv.reader([row], strict=True))
        except csv.Error:
            limit = f"{csv.field_size_limit():,}"
            raise self._error(f"more than {limit} characters in one cell") from None

    def _error(self, what: str) -> UserError:
        where = "the header" if self._n_rows == 1 else f"row {self._n_rows - 1}"
        return UserError(
            f"{self._path}: not written: {where} would hold {what}, which no reader takes; mend the text"
        )


def read_csv(path: Path, what: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a CSV file, as text.

    Args:
        path: the file (UTF-8, with or without a byte-order mark).
        what: what the file should be, for the message.

    Returns:
        The column names, and per row the line number on which it ends with its cells, as many as there
        are columns.
        Wholly empty lines are passed over.

    Raises:
        UserError: missing, not UTF-8, no header, a column named twice, or a row of another length.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; save the {what} as UTF-8 and run again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a {what}: {error.strerror}") from None
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not a valid CSV row ({error})") from None
    if not header:
        raise UserError(f"{path}: empty file; expected a {what} with a header line")
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise UserError(f"{path}: column {twice[0]!r} stands twice in the header; rename one")
    for line, cells in rows:
        if any("\0" in cell for cell in cells):
            raise UserError(f"{path}: line {line}: holds a NUL byte; save the {what} as UTF-8 text")
        if len(cells) != len(header):
            raise UserError(
                f"{path}: line {line}: {len(cells)} cells where the header has {len(header)}; "
                "put texts with commas in double quotes"
            )
    return header, rows


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an uncompressed NPZ, atomically; equal arrays give equal bytes.

    Args:
        path: the file; its folder is made where missing.
        arrays: name to an array of any shape and any dtype but objects.

    Raises:
        ValueError: an array of objects.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        np.savez(handle, allow_pickle=False, **in_order)


def read_npz(
    path: Path, names: Sequence[str], what: str, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The named arrays of an NPZ file, of any shape and dtype but objects: never unpickled.

    What an array takes in memory is bounded by its bytes in the file: a shape that they do not fill is
    refused before anything is reserved for it, and so is a compressed array, which could unpack to any size.

    Args:
        path: the file.
        names: of the arrays.
        what: the file is, for messages.
        optional: further arrays, which the file may lack; the result then lacks them too.

    Raises:
        UserError: the file is missing, truncated, altered, compressed, or lacks one of the arrays.
    """
    try:
        with zipfile.ZipFile(path) as members:
            there = [name for name in optional if f"{name}.npy" in members.namelist()]
            names = [*names, *there]
            for name in names:
                if f"{name}.npy" not in members.namelist():
                    raise UserError(f"{path}: array {name!r} is missing; expected a {what}")
                entry = members.getinfo(f"{name}.npy")
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"array {name!r} is compressed; save it by numpy.savez")
                with members.open(entry) as stream:
                    npy_header(stream, entry.file_size)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a {what}") from None
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or not a {what} ({error}); make it again") from None


def npy_header(stream: IO[bytes], n_bytes: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns are contiguous, and dtype of the array that follows in an NPY stream.

    Args:
        stream: at the start of the NPY data; afterwards at the start of the values.
        n_bytes: of the NPY data in all.

    Raises:
        ValueError: no NPY data, an array of objects, or a shape that the bytes do not fill.
    """
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"NPY version {version}")
    try:
        shape, by_columns, dtype = read(stream)
    except (SyntaxError, tokenize.TokenError) as error:  # NumPy reads the header as a Python expression
        raise ValueError(f"a damaged NPY header: {error}") from None
    n_values = n_bytes - stream.tell()
    if dtype.hasobject:
        raise ValueError("an array of objects, which only pickle could read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != n_values:
        raise ValueError(f"{n_values} bytes for an array of shape {shape}, {dtype}")
    return shape, by_columns, dtype


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value written with sorted keys: one value, one digest."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with its own digest under ``sha256``, so that a change of it is found."""
    unsealed = {key: value for key, value in content.items() if key != "sha256"}
    return {**unsealed, "sha256": sha256_of_json(unsealed)}


def is_changed(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object's seal says that it is not what was written; False where it has no seal.

    A seal whose own name was damaged is told by its value: no other key holds the digest of all the others.
    """
    if "sha256" in content:
        return bool(sealed(content)["sha256"] != content["sha256"])
    digests = [key for key, value in content.items() if isinstance(value, str) and len(value) == 64]
    return any(
        content[key] == sha256_of_json({name: value for name, value in content.items() if name != key})
        for key in digests
    )


def _is_temporary(path: Path) -> bool:
    """Whether it is what `atomic_path` leaves when its process is killed."""
    return TEMPORARY.fullmatch(path.name) is not None


def check_way(path: Path, overwrite: bool, what: str, marker: str | None = None) -> None:
    """Make sure that a result may be written at ``path``, or say why what stands there must stay.

    Args:
        path: where a result is about to be written, file or folder; an empty folder, or one with nothing but
            what a killed write left, is no obstacle.
        overwrite: the user asked for its replacement.
        what: what is written there, for the message.
        marker: for a folder, the file that shows it to be one of ours. A slip such as ``--output .``
            must not cost anybody's files, so another folder is never replaced.

    Raises:
        UserError: something stands there and may not be replaced.
    """
    if not path.exists() or (path.is_dir() and all(_is_temporary(entry) for entry in path.iterdir())):
        return
    if marker is not None and path.is_file():
        raise UserError(f"{path}: a file; expected a folder for the {what}; choose another --output")
    if path.is_dir() and (marker is None or not (path / marker).is_file()):
        raise UserError(f"{path}: a folder that holds something else than {what}; choose another --output")
    if not overwrite:
        raise UserError(f"{path}: already exists; choose another --output for the {what}, or add --overwrite")


def make_way(path: Path, overwrite: bool, what: str, marker: str | None = None) -> None:
    """Check as `check_way` does, then delete what stands at ``path``.

    Raises:
        UserError: something stands there and may not be replaced.
    """
    check_way(path, overwrite, what, marker)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
