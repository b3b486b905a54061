"""An SAE's matrices from their file, in strips: the encoder's is turned round while it is read.

The product wants features as rows, the files hold them as columns. Read in strips, the matrix is never in
memory twice.

Axes: D d_model, F features (d_sae).
"""

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import npy_header

if TYPE_CHECKING:
    import torch

_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class MatrixFile:
    """A matrix that is still in its file.

    Attributes:
        outer: number of its runs of values in the file: rows, or columns where ``by_columns``.
        inner: values of a run.
        by_columns: the file holds it column by column.
        strip: float32 [last - first, inner] of the runs from first to last; called from the first run on.
    """

    outer: int
    inner: int
    by_columns: bool
    strip: Callable[[int, int], "torch.Tensor"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return (self.inner, self.outer) if self.by_columns else (self.outer, self.inner)

    def strips(self) -> Iterator[tuple[int, "torch.Tensor"]]:
        """Strip after strip: its first run, and float32 [n_runs, inner]."""
        for first in range(0, self.outer, _ROWS_AT_ONCE):
            yield first, self.strip(first, min(first + _ROWS_AT_ONCE, self.outer))


@contextlib.contextmanager
def open_matrix(path: Path, *names: str) -> Iterator[MatrixFile]:
    """A matrix of an NPZ or safetensors file, to be read strip by strip while it is open.

    Args:
        path: the file.
        names: that it may have; releases spell them differently.

    Raises:
        UserError: the file is truncated, altered, or has no such matrix.
    """
    opened = _in_npz(path, *names) if path.suffix == ".npz" else _in_safetensors(path, *names)
    with opened as matrix:
        yield matrix


def matrix_from_npz(path: Path, name: str) -> "torch.Tensor":
    """Array ``name`` [D, F] of an NPZ file as float32 [F, D].

    Raises:
        UserError: the file is truncated, altered, or has no such matrix.
    """
    with _in_npz(path, name) as matrix:
        return _assemble(matrix)


def matrix_from_safetensors(path: Path, name: str) -> "torch.Tensor":
    """Tensor ``name`` [D, F] of a safetensors file as float32 [F, D].

    Raises:
        UserError: the file is truncated or altered.
    """
    with _in_safetensors(path, name) as matrix:
        return _assemble(matrix)


@contextlib.contextmanager
def _in_npz(path: Path, *names: str) -> Iterator[MatrixFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((one for one in names if f"{one}.npy" in archive.namelist()), names[0])
            member = f"{name}.npy"
            if member not in archive.namelist():
                raise UserError(f"{path}: array {name!r} is missing; fetch the SAE again")
            if archive.getinfo(member).compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"array {name!r} is compressed, so that it could unpack to any size")
            with archive.open(member) as stream:
                shape, by_columns, dtype = npy_header(stream, archive.getinfo(member).file_size)
                if len(shape) != 2 or dtype.kind != "f":
                    raise ValueError(f"expected a matrix of floats, found {dtype} of shape {shape}")
                n_rows, n_columns = shape
                outer, inner = (n_columns, n_rows) if by_columns else (n_rows, n_columns)

                def strip(first: int, last: int) -> "torch.Tensor":
                    import torch

                    raw = bytearray(stream.read((last - first) * inner * dtype.itemsize))
                    values = np.frombuffer(raw, dtype).reshape(last - first, inner)
                    return torch.from_numpy(values.astype(np.float32, copy=False))

                yield MatrixFile(outer, inner, by_columns, strip)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or not an SAE's weights ({error}); fetch it again") from error


@contextlib.contextmanager
def _in_safetensors(path: Path, *names: str) -> Iterator[MatrixFile]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            name = next((one for one in names[1:] if one in tensors.keys()), names[0])  # noqa: SIM118
            matrix = tensors.get_slice(name)
            shape = matrix.get_shape()
            if len(shape) != 2:
                raise UserError(f"{path}: {name} has the shape {tuple(shape)}, no matrix; fetch it again")
            n_rows, n_columns = shape
            yield MatrixFile(n_rows, n_columns, False, lambda first, last: matrix[first:last].float())
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not an SAE's weights ({error}); fetch it again") from error


def _assemble(file: MatrixFile) -> "torch.Tensor":
    """The matrix [D, F] as float32 [F, D]."""
    import torch

    n_rows, n_columns = file.shape
    matrix = torch.empty((n_columns, n_rows))
    for first, strip in file.strips():
        last = first + len(strip)
        if file.by_columns:
            matrix[first:last] = strip
        else:
            matrix[:, first:last] = strip.T
    return matrix
