"""Run the scripts of a stage when something changed since they last ran, and not otherwise."""

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.command_line import Stopwatch
from pipeline_common.errors import UserError
from pipeline_common.files import read_json, sha256_of_file, write_json


@dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes:
        name: ``s0`` to ``s5``, ``sweep`` or ``report``.
        folder: where its commands run.
        commands: scripts with their arguments; ``--overwrite`` and ``--resume`` are added when needed.
        inputs: files that decide the outcome.
        outputs: files that show the outcome, all of them written when the stage is complete.
        resumes: its script goes on with an unfinished output by ``--resume``.
    """

    name: str
    folder: Path
    commands: list[list[str]]
    inputs: list[Path]
    outputs: list[Path]
    resumes: bool = False


def record_of(stage: Stage, root: Path, shared_code: Sequence[Path]) -> dict[str, Any]:
    """What decides the outcome of a stage: its commands, its input files and its code."""
    code = hashlib.sha256()
    for folder in (stage.folder, *shared_code):
        for path in sorted([*folder.rglob("*.py"), *folder.glob("templates/*")]):
            code.update(f"{path.relative_to(root)} {sha256_of_file(path)}\n".encode())
    return {
        "commands": stage.commands,
        "inputs": {os.path.relpath(path, root): sha256_of_file(path) for path in stage.inputs},
        "code": code.hexdigest(),
    }


def digests(paths: Sequence[Path], root: Path) -> dict[str, str | None]:
    """SHA-256 of each file, None where it is missing."""
    return {os.path.relpath(path, root): sha256_of_file(path) if path.is_file() else None for path in paths}


def run_if_needed(
    stage: Stage,
    state_file: Path,
    root: Path,
    shared_code: Sequence[Path],
    call: Callable[[Path, Sequence[str]], None],
) -> None:
    """Run a stage, unless the same commands on the same files and code left the outputs that stand there.

    An output that an earlier run of this pipeline made is replaced; one that somebody else made is left to
    the stage's own script to refuse.

    Args:
        stage: what to run.
        state_file: JSON with what earlier runs left, one entry a stage.
        root: folder that file names in the record are relative to.
        shared_code: folders whose code decides the outcome beside the stage's own.
        call: runs one command in a folder.

    Raises:
        UserError: a command failed; its own message stands above.
    """
    state = read_json(state_file, "pipeline state") if state_file.exists() else {}
    before = state.get(stage.name, {})
    record = record_of(stage, root, shared_code)
    unchanged = {key: before.get(key) for key in record} == record
    finished = before.get("outputs") or before.get("replaces")
    as_finished = finished == digests(stage.outputs, root)
    if unchanged and as_finished and "outputs" in before:
        print(f"{stage.name}: complete and current, skipped", flush=True)
        return
    if before or not any(path.exists() for path in stage.outputs):
        # Not recorded otherwise: what somebody else made must be refused again next time.
        state[stage.name] = {**record, "replaces": finished}
        write_json(state_file, state)
    watch = Stopwatch()
    # A rerun that was stopped before it replaced the finished output finds it as it was.
    resume = not before or (unchanged and not as_finished)
    for command in stage.commands:
        extra = []
        if stage.resumes:
            extra = ["--resume"] if resume else ["--overwrite"]
        elif before and "--output" in command:
            extra = ["--overwrite"]
        call(stage.folder, [*command, *extra])
    missing = [path for path in stage.outputs if not path.is_file()]
    if missing:
        raise UserError(f"{stage.name}: {missing[0]} was not written, although every command succeeded")
    state[stage.name] = {**record, "outputs": digests(stage.outputs, root)}
    write_json(state_file, state)
    print(f"{stage.name}: done in {watch.seconds:.0f} s", flush=True)


def call(folder: Path, command: Sequence[str]) -> None:
    """Print a command as a user would type it, and run it in its stage's folder.

    Raises:
        UserError: it did not end with exit code 0.
    """
    shown = f"cd {folder.name} && uv run python {shlex.join(command)}"
    print(f"\n$ {shown}", flush=True)
    script = str(folder / command[0])
    code = subprocess.run([sys.executable, script, *command[1:]], cwd=folder).returncode
    if code:
        raise UserError(
            f"{folder.name}: {command[0]} ended with exit code {code}, see above; when it is mended, run the "
            "same pipeline command again: what is complete is skipped"
        )
