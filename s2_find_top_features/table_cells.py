"""Cells of the tables that this stage writes, read back; part of ranked_features.py."""

import math


def number_of(text: str) -> float | None:
    """A number; None for an empty cell, a value that does not exist.

    Raises:
        ValueError: no number, or not a finite one.
    """
    value = float(text) if text else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def index_of(name: str, text: str) -> int:
    """An integer from 0; ``name`` is the column, for the message.

    Raises:
        ValueError: it is none.
    """
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value < 2**53:
        raise ValueError(f"{name} is {text[:60]!r}, not an integer from 0")
    return value
