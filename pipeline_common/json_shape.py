"""Whether JSON that somebody else may have written is what a reader expects, told by the key that is not.

A shape is written in Python's own terms:

    str, int, float, bool, list, dict   a value of this type; float takes integers too, int takes no bool
    None                                null
    range(4)                            an integer in the range
    re.compile(...)                     a text that matches as a whole
    frozenset(...)                      one of these values
    [shape]                             a list of such
    {"key": shape, "key?": shape}       an object with at least these keys; those with ? may be missing
    {str: shape}                        an object with any keys
    (shape, shape)                      one of several; a mistake is told by the last one
"""

import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError

NATURAL = range(2**53)
"""An integer from 0; JSON readers elsewhere keep integers up to here."""
POSITIVE = range(1, 2**53)
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A text that is safe as a part of a file's name: no separator, not hidden."""

_WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false", list: "a list"}


@dataclass(frozen=True)
class JsonFormat:
    """A format of this project's own: how its JSON names itself, and what must be in it.

    Attributes:
        name: under the key ``format``.
        version: under the key ``format_version``, of what is written now.
        what: in a word or two, for messages: "feature store", "results".
        shape: see the module.
        remedy: what to do about a file that is not so, for messages.
        older_versions: those that a reader takes as well; the shape holds for them too.
    """

    name: str
    version: int
    what: str
    shape: Any
    remedy: str
    older_versions: tuple[int, ...] = ()

    @property
    def header(self) -> dict[str, Any]:
        """The keys that every writer puts first."""
        return {"format": self.name, "format_version": self.version}

    def check(self, path: Path, value: Any) -> dict[str, Any]:
        """The value, which is of this format.

        Args:
            path: the file that it was read from, for the message.
            value: as `json.loads` returns it.

        Raises:
            UserError: it is of another format or version, or a key is not what it should be.
        """
        if not isinstance(value, dict) or value.get("format") != self.name:
            raise UserError(f"{path}: holds no {self.what}; {self.remedy}")
        readable = (*self.older_versions, self.version)
        if value.get("format_version") not in readable:
            raise UserError(
                f"{path}: {self.what} format {value.get('format_version')}, this program reads format "
                f"{' or '.join(map(str, readable))}; {self.remedy}"
            )
        check_shape(path, value, self.shape, self.remedy)
        return value


def check_shape(path: Path, value: Any, shape: Any, remedy: str) -> None:
    """Make sure that a JSON value is of a shape.

    Args:
        path: the file that it was read from, for the message.
        value: as `json.loads` returns it.
        shape: see the module.
        remedy: what to do about a mistake, for the message.

    Raises:
        UserError: it is not; the message names the key, e.g. ``saes.0.layer``.
    """
    problem = _problem(value, shape, "")
    if problem:
        raise UserError(f"{path}: {problem}; {remedy}")


def _problem(value: Any, shape: Any, at: str) -> str | None:
    if isinstance(shape, tuple):
        problems = [_problem(value, one, at) for one in shape]
        return problems[-1] if all(problems) else None
    if isinstance(shape, list) and isinstance(value, list):
        return _first(_problem(one, shape[0], f"{at}{place}.") for place, one in enumerate(value))
    if isinstance(shape, dict) and isinstance(value, dict):
        if str in shape:
            return _first(_problem(one, shape[str], f"{at}{key}.") for key, one in value.items())
        return _first(_problem_of_key(value, key, one, at) for key, one in shape.items())
    if _fits(value, shape):
        return None
    name = at.removesuffix(".") or "the file as a whole"
    return f"{name}: expected {_in_words(shape)}, found {reprlib.repr(value)}"


def _problem_of_key(value: dict[str, Any], key: str, shape: Any, at: str) -> str | None:
    name = key.removesuffix("?")
    if name in value:
        return _problem(value[name], shape, f"{at}{name}.")
    return None if key.endswith("?") else f"{at}{name}: this key is missing"


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem), None)


def _fits(value: Any, shape: Any) -> bool:
    if shape is None:
        return value is None
    if isinstance(shape, range):
        return type(value) is int and value in shape
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    if isinstance(shape, frozenset):
        return isinstance(value, str) and value in shape
    if not isinstance(shape, type):
        return False
    if isinstance(value, bool):
        return shape is bool
    return isinstance(value, (int, float) if shape is float else shape)


def _in_words(shape: Any) -> str:
    if shape is None:
        return "null"
    if isinstance(shape, range):
        return f"an integer from {shape.start}" + (
            "" if shape.stop == NATURAL.stop else f" to {shape.stop - 1}"
        )
    if isinstance(shape, re.Pattern):
        return f"a text like {shape.pattern}"
    if isinstance(shape, frozenset):
        return f"one of {', '.join(sorted(shape))}"
    kind = shape if isinstance(shape, type) else type(shape)
    return _WORDS.get(kind, "an object")
