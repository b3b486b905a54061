"""An encoder's matrix from its file, turned round while it is read.

The product wants features as rows, the files hold them as columns. Read in strips, the matrix is never in
memory twice.

Axes: D d_model, F features (d_sae).
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import npy_header

if TYPE_CHECKING:
    import torch

_ROWS_AT_ONCE = 128


def matrix_from_npz(path: Path, name: str) -> "torch.Tensor":
    """Array ``name`` [D, F] of an NPZ file as float32 [F, D].

    Raises:
        UserError: the file is truncated, altered, or has no such matrix.
    """
    try:
        with zipfile.ZipFile(path) as archive:
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

                return _assemble(outer, inner, strip, turn=not by_columns)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or not an SAE's weights ({error}); fetch it again") from error


def matrix_from_safetensors(path: Path, name: str) -> "torch.Tensor":
    """Tensor ``name`` [D, F] of a safetensors file as float32 [F, D].

    Raises:
        UserError: the file is truncated or altered.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            matrix = tensors.get_slice(name)
            outer, inner = matrix.get_shape()
            return _assemble(outer, inner, lambda first, last: matrix[first:last].float(), turn=True)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not an SAE's weights ({error}); fetch it again") from error


def _assemble(
    outer: int, inner: int, strip: Callable[[int, int], "torch.Tensor"], turn: bool
) -> "torch.Tensor":
    """A matrix from strips of its file's rows [., inner], turned round where asked."""
    import torch

    matrix = torch.empty((inner, outer) if turn else (outer, inner))
    for first in range(0, outer, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, outer)
        if turn:
            matrix[:, first:last] = strip(first, last).T
        else:
            matrix[first:last] = strip(first, last)
    return matrix
