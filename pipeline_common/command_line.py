"""Argparse types and the set-up that every script shares."""

import argparse
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the line breaks of a description as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, Path):
            return f"{action.help} (default: {os.path.relpath(action.default)})".replace("%", "%%")
        return super()._get_help_string(action)


def number_type(kind: type[Number], low: Number, high: Number | None = None) -> Callable[[str], Number]:
    """An argparse type: a number from ``low``, to ``high`` where that is given, both included.

    Args:
        kind: int or float.
        low: the smallest.
        high: the largest; None for no limit.

    Returns:
        A function that raises `argparse.ArgumentTypeError` for any other text, NaN among it.
    """

    def number(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not (low <= value and (high is None or value <= high)):
            limits = f"at least {low}" if high is None else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return number


positive_int = number_type(int, 1)
count = number_type(int, 0)
fraction = number_type(float, 0, 1)
correlation = number_type(float, -1, 1)

MAX_INDEX = 9999


def index_ranges(text: str) -> list[int]:
    """Indices from ranges and lists, mixed: ``0-5``, ``0,3,7``, ``0-2,8,10-12``. Ascending, each once.

    An index is at most `MAX_INDEX`: a range of a slip of the finger would fill the memory.

    Raises:
        argparse.ArgumentTypeError: a part is neither a number nor a range, runs backwards or too far.
    """
    indices: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} in {text!r} is neither a number nor a range like 0-5"
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise argparse.ArgumentTypeError(f"range {part.strip()!r} runs backwards; write {last}-{first}")
        if last > MAX_INDEX:
            raise argparse.ArgumentTypeError(f"{last} in {text!r} is over {MAX_INDEX}")
        indices.update(range(first, last + 1))
    return sorted(indices)


def configure_logging(package: str) -> None:
    """Log a stage's own messages to stderr, plainly, and other libraries' only from warnings upwards.

    Args:
        package: the stage's package name.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in (package, "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


def settings_line(arguments: argparse.Namespace, hidden: frozenset[str] = frozenset()) -> str:
    """The resolved settings of a run in one line, for the log; names in ``hidden`` are left out."""
    values: Mapping[str, Any] = vars(arguments)
    return "settings: " + ", ".join(
        f"{key}={(' '.join(map(str, value)) or 'none') if isinstance(value, list) else value}"
        for key, value in values.items()
        if key not in hidden
    )


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Elapsed wall-clock seconds, from a clock that never jumps."""
        return time.monotonic() - self._start
