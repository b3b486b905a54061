"""Character vectors out of the data of an R package, as ``R CMD INSTALL`` stores it."""

import bz2
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError

_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
_HAS_ATTRIBUTES, _HAS_TAG = 0x200, 0x400
_SYMBOL, _PAIRS, _STRING, _LOGICAL, _INTEGER, _REAL, _STRINGS, _LIST = 1, 2, 9, 10, 13, 14, 16, 19
_EMPTY_CODES = frozenset({242, 253, 254})
"""The empty environment, the global environment and NULL: each is its code alone."""
_REFERENCE = 255


def read_r_strings(database: Path, variable: str) -> list[str]:
    """The character vector ``variable`` of an R lazy-load database.

    The index (``.rdx``) is a zlib or gzip stream of R's binary serialisation; the data file (``.rdb``) holds
    a compressed one per variable.

    Args:
        database: the path of both files, without their suffix.
        variable: the name that the vector has in R.

    Returns:
        Its elements; a missing value (NA) is an empty string.

    Raises:
        UserError: a file is missing or damaged, or holds no such vector.
    """
    index_path, data_path = database.with_suffix(".rdx"), database.with_suffix(".rdb")
    try:
        index = _Reader(zlib.decompress(index_path.read_bytes(), _ZLIB_OR_GZIP)).read()
        places = index["variables"]
        if variable not in places:
            raise UserError(f"{index_path}: no variable {variable!r}; it holds {', '.join(places)}")
        offset, length = places[variable]
        chunk = data_path.read_bytes()[offset : offset + length]
        value = _Reader(_unpacked(chunk)).read()
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    except (zlib.error, lzma.LZMAError, struct.error, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{database}: damaged or not R data ({error}); fetch the package again") from None
    if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
        raise UserError(f"{data_path}: {variable} is no character vector")
    return value


def _unpacked(chunk: bytes) -> bytes:
    """A variable's serialisation: behind four bytes of length, and a letter where it is no zlib stream."""
    kind, data = chunk[4:5], chunk[5:]
    if kind == b"Z":
        # R writes the bare stream without a header, always with these settings.
        settings = {"id": lzma.FILTER_LZMA2, "preset": 6 | lzma.PRESET_EXTREME}
        return lzma.decompress(data, format=lzma.FORMAT_RAW, filters=[settings])
    if kind == b"2":
        return bz2.decompress(data)
    return data if kind == b"0" else zlib.decompress(chunk[4:])


class _Reader:
    """R's serialisation, version 2 or 3, in its big-endian form (R Internals, section 1.8).

    A named list becomes a dict, any other vector a list; attributes other than names are passed over.
    """

    def __init__(self, data: bytes) -> None:
        if data[:2] != b"X\n":
            raise ValueError("not R's binary format")
        self.data, self.position = data, 2
        self.references: list[Any] = []
        version, _written_by, _readable_from = self._integers(3)
        if version == 3:
            self._bytes(self._integers(1)[0])  # name of the native encoding
        elif version != 2:
            raise ValueError(f"version {version}")

    def _bytes(self, n_bytes: int) -> bytes:
        self.position += n_bytes
        if n_bytes < 0 or self.position > len(self.data):
            raise ValueError("ends too early")
        return self.data[self.position - n_bytes : self.position]

    def _integers(self, n_values: int) -> list[int]:
        return list(struct.unpack(f">{n_values}i", self._bytes(4 * n_values)))

    def read(self) -> Any:
        """The next value.

        Raises:
            ValueError: it is of a type that no text needs, or the data ends in it.
        """
        (flags,) = self._integers(1)
        kind = flags & 0xFF
        if kind in _EMPTY_CODES:
            return None
        if kind == _REFERENCE:
            return self.references[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self.references.append(self.read())
            return self.references[-1]
        (length,) = self._integers(1) if kind != _PAIRS else (0,)
        if kind == _STRING:
            return self._bytes(length).decode() if length >= 0 else ""
        if kind == _PAIRS:
            return self._pairs(flags)
        value: Any
        if kind in (_LOGICAL, _INTEGER):
            value = self._integers(length)
        elif kind == _REAL:
            value = list(struct.unpack(f">{length}d", self._bytes(8 * length)))
        elif kind in (_STRINGS, _LIST):
            value = [self.read() for _ in range(length)]
        else:
            raise ValueError(f"type {kind} is not read here")
        attributes = self.read() if flags & _HAS_ATTRIBUTES else None
        if kind == _LIST and attributes and "names" in attributes:
            return dict(zip(attributes["names"], value, strict=True))
        return value

    def _pairs(self, flags: int) -> dict[str, Any]:
        """A pairlist: attributes, tag, value, and the rest of the list."""
        if flags & _HAS_ATTRIBUTES:
            self.read()
        tag = self.read() if flags & _HAS_TAG else ""
        pairs = {str(tag): self.read()}
        return pairs | (self.read() or {})
