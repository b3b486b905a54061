"""The shell commands that stand in the project's documents, in the order in which a reader meets them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.source_rules import ROOT

PROGRAMS = "uv|make|pip|pytest|python3?|torchrun|srun|sbatch|git|cp|mv|chmod|curl|wget|docker|export|awk"
COMMAND = re.compile(rf"(cd \S+ && )?({PROGRAMS}) +\S|\.ci/run\b")
ASSIGNMENT = re.compile(r"[A-Z_]+=")
LOOKS_LIKE_ONE = re.compile(r"^(?!.*-->)(\$ |\S+( \S+)* --[a-z])", re.MULTILINE)
"""A line of single spaces with a flag, whatever the program: a tree has wider gaps, a diagram has arrows."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELL = ("", "sh", "bash")


@dataclass(frozen=True)
class Command:
    """One command of a document.

    Attributes:
        document: path below the project's root.
        line: where it stands, from 1.
        folder: where it is run, below the root; of ``cd FOLDER && ...`` that folder.
        text: what bash is given; assignments that stand above it in its block come first, a line each.
    """

    document: str
    line: int
    folder: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def last_line(self) -> str:
        """The command without the assignments above it."""
        return self.text.splitlines()[-1]


def documents() -> list[Path]:
    """Every document with commands for a reader: the stages in order, then the rest of the project.

    Those below ``tests`` say how to run tests; they are left out.
    """
    found = {path for pattern in ("*.md", "*/*.md", "*/*/*.md") for path in ROOT.glob(pattern)}
    read = [
        path
        for path in found
        if not any(part.startswith((".", "tests")) for part in path.relative_to(ROOT).parts)
    ]

    def order(path: Path) -> tuple[bool, str, int, str]:
        stage = stage_of(path)
        return not stage, stage, len(path.parts), str(path)

    return sorted((path for path in read if path.name != "CHANGELOG.md"), key=order)


def stage_of(document: Path) -> str:
    """The stage's folder that a document describes, empty where it describes the whole project."""
    first = document.relative_to(ROOT).parts[0]
    return first if re.match(r"s\d_", first) else ""


def commands_of(document: Path) -> list[Command]:
    """The commands in the blocks and in the text of a document.

    Raises:
        AssertionError: a block holds commands and something else, so that nobody knows what is to be run.
    """
    text = document.read_text(encoding="utf-8")
    found = []
    for block in FENCE.finditer(text):
        first_line = text[: block.start(2)].count("\n") + 1
        if block[1] in SHELL:
            found += _commands_of_block(document, first_line, block[2])
    # Blocks are blanked rather than cut, so that lines keep their numbers.
    prose = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for span in CODE_SPAN.finditer(prose):
        if COMMAND.match(span[1]):
            found.append(_command(document, prose[: span.start()].count("\n") + 1, [], span[1]))
    return sorted(found, key=lambda command: command.line)


def _commands_of_block(document: Path, first_line: int, block: str) -> Iterator[Command]:
    # A continued line becomes a space and an empty line, so that lines keep their numbers.
    joined = re.sub(r"((?:[^\n]*\\\n)+)([^\n]*\n)", _one_line, block)
    lines = joined.splitlines()
    if not (any(COMMAND.match(line) for line in lines) or LOOKS_LIKE_ONE.search(block)):
        return
    assignments: list[str] = []
    for number, line in enumerate(lines, first_line):
        if not line:
            continue
        if ASSIGNMENT.match(line):
            assignments.append(line)
            continue
        place = f"{document.relative_to(ROOT)}:{number}"
        assert COMMAND.match(line), f"{place}: no command that is known here, in a block of commands: {line}"
        yield _command(document, number, assignments, line)


def _one_line(continued: re.Match[str]) -> str:
    parts = [part.strip() for part in continued[0].replace("\\\n", "\n").splitlines()]
    return " ".join(parts) + "\n" * len(parts)


def _command(document: Path, line: int, assignments: list[str], text: str) -> Command:
    text = re.split(r" {2,}", text)[0]  # what a command does may stand to the right of it
    folder = stage_of(document)
    change = re.match(r"cd (\S+) && ", text)
    if change:
        folder, text = change[1], text[change.end() :]
    return Command(str(document.relative_to(ROOT)), line, folder, "\n".join([*assignments, text]))


def documented_commands() -> list[Command]:
    """Every command of every document; one that stands in several comes once, where it stands first."""
    first: dict[tuple[str, str], Command] = {}
    for document in documents():
        for command in commands_of(document):
            first.setdefault((command.folder, command.text), command)
    return list(first.values())


def flags_in(text: str) -> set[str]:
    """Every ``--flag`` of a command or a document."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
