"""Files that are either whole or not there: atomic writes, checked reads, checksums."""

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError


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
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        UserError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a {what}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a {what}: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}: not valid JSON ({error.msg}); expected a {what}"
        ) from None


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV (UTF-8, comma, Unix line ends), atomically. None becomes an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


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
    """Write arrays as an uncompressed NPZ, atomically; equal arrays give equal bytes."""
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        np.savez(handle, allow_pickle=False, **in_order)


def read_npz(path: Path, names: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """The named arrays of an NPZ file, never unpickled.

    Raises:
        UserError: the file is missing, truncated, altered, or lacks one of the arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise UserError(f"{path}: array {missing[0]!r} is missing; expected a {what}")
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a {what}") from None
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or not a {what} ({error}); make it again") from None


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value written with sorted keys: one value, one digest."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _is_temporary(path: Path) -> bool:
    """Whether a file is what `atomic_path` leaves when its process is killed."""
    return path.name.startswith(".") and ".tmp" in path.name


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
