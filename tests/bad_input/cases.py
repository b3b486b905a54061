"""What a case of bad input is, and the ways to damage a file."""

import csv
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.files import sealed

Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: what is wrong, in a few words.
        damage: what is done to the kind's file; None where the command line is what is wrong.
        culprits: what the message has to name, beside the kind's ``where``.
        arguments: the command line, where it is not the kind's.
    """

    name: str
    damage: Damage | None
    culprits: tuple[str, ...]
    arguments: str | None = None


@dataclass(frozen=True)
class Kind:
    """Bad inputs of one kind.

    Attributes:
        name: of the kind.
        script: dotted name of the module whose ``main`` reads it.
        arguments: the command line, run in the folder that holds the parts; sound without the damage.
        parts: of the world (world.py) that the command needs.
        file: the file to damage, one of the parts or below one.
        where: what every message has to name: the file, or the store that it is part of.
        cases: at most 15.
        exit_code: of every case.
        leaves: folder that a run of hours may leave, since it goes on from what is complete there.
    """

    name: str
    script: str
    arguments: str
    parts: str
    file: str
    where: str
    cases: tuple[Case, ...]
    exit_code: int = 1
    leaves: str = ""


def case(name: str, damage: Damage, *culprits: str) -> Case:
    """A damaged file."""
    return Case(name, damage, culprits)


def usage(arguments: str, *culprits: str) -> Case:
    """A wrong command line; it is its own name."""
    return Case(arguments, None, culprits, arguments)


def content(value: str | bytes) -> Damage:
    """The file holds this and nothing else."""
    return lambda path: _replace(path, value.encode() if isinstance(value, str) else value)


def swap(old: str, new: str) -> Damage:
    """The first occurrence of a text is another one."""

    def damage(path: Path) -> None:
        before = path.read_text(encoding="utf-8")
        assert old in before, f"{path} holds no {old!r}"
        path.write_text(before.replace(old, new, 1), encoding="utf-8")

    return damage


def cell(column: str, value: str, row: int = 1) -> Damage:
    """A cell of a CSV is another one; row 1 is the one below the header."""

    def damage(path: Path) -> None:
        with path.open(encoding="utf-8", newline="") as handle:
            table = list(csv.reader(handle))
        table[row][table[0].index(column)] = value
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows(table)

    return damage


def cut(share: float) -> Damage:
    """The file ends early."""

    def damage(path: Path) -> None:
        before = path.read_bytes()
        path.write_bytes(before[: int(len(before) * share)])

    return damage


def gone(path: Path) -> None:
    """The file is not there."""
    path.unlink()


def folder_instead(path: Path) -> None:
    """A folder bears the file's name."""
    path.unlink()
    path.mkdir()


def entry(key: str, value: Any, seal: bool = False) -> Damage:
    """A JSON value is another one; the key is as in ``saes.0.name``. With ``seal`` the file's digest fits."""

    def damage(path: Path) -> None:
        document = json.loads(path.read_text(encoding="utf-8"))
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        holder = document
        for part in parents:
            holder = holder[part]
        assert isinstance(last, int) or last in holder, f"{path} has no {key}"
        holder[last] = value
        path.write_text(json.dumps(sealed(document) if seal else document), encoding="utf-8")

    return damage


def without(key: str) -> Damage:
    """A JSON key is missing."""

    def damage(path: Path) -> None:
        document = json.loads(path.read_text(encoding="utf-8"))
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        holder = document
        for part in parents:
            holder = holder[part]
        del holder[last]
        path.write_text(json.dumps(document), encoding="utf-8")

    return damage


def arrays(**changed: Any) -> Damage:
    """Arrays of an NPZ are others: an array, a function of the one that is there, or None for none."""

    def damage(path: Path) -> None:
        with np.load(path) as archive:
            kept = dict(archive)
        for name, value in changed.items():
            before = kept.pop(name, None)
            if value is not None:
                kept[name] = value(before) if callable(value) else np.asarray(value)
        np.savez(path, **kept)

    return damage


def flipped_bit(member: str) -> Damage:
    """One bit of the data of a member of an NPZ is another one."""

    def damage(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{member}.npy")
            offset = info.header_offset + 30 + len(info.filename) + info.file_size
        before = bytearray(path.read_bytes())
        before[offset] ^= 1
        path.write_bytes(bytes(before))

    return damage


def _replace(path: Path, value: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(value)
