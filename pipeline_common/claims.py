"""One run at a time on an output, and nothing half-written left of an earlier one."""

import contextlib
import logging
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import IO

from pipeline_common.errors import UserError, cannot_write, when_main_ends
from pipeline_common.files import TEMPORARY, temporary_names

logger = logging.getLogger(__name__)

_held: set[Path] = set()


def claim_output(output: Path, *beside: Path, marker: str | None = None) -> None:
    """Keep other runs away from an output until this script's ``main`` ends.

    The claim is a lock on ``.NAME.lock`` beside the output. The kernel takes it back when the process dies,
    whatever it dies of, so a lock file that a kill left is no obstacle. Temporary files of killed runs at the
    output go.

    Args:
        output: file or folder that is about to be written; it need not exist.
        beside: further files that the run writes. They are tidied; the lock is on the output alone.
        marker: the file that shows a folder to be one of ours; no other folder is looked into.

    Raises:
        UserError: another run holds the output, or nothing can be written there.
    """
    output = output.resolve()
    lock = output.with_name(f".{output.name}.lock")
    made = [folder for folder in lock.parents if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(lock, output)
    except OSError as error:
        told = cannot_write(output, error)
        if told is None:
            raise
        raise told from None
    _held.add(lock)
    when_main_ends(lambda: _release(lock, handle, made))
    for path in (output, *(other.resolve() for other in beside)):
        _tidy(path, marker)


def _locked(lock: Path, output: Path) -> IO[str]:
    """The lock file, locked for this process."""
    for is_last_try in (False, False, False, True):
        handle = lock.open("a+", encoding="utf-8")
        try:
            if lock in _held:
                raise BlockingIOError
            _take(handle)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read(200).strip()
            handle.close()
            raise UserError(
                f"{output}: another run is writing here{f' ({holder})' if holder else ''}; wait until it has "
                "ended, or choose another output"
            ) from None
        # The last holder may have deleted the file between our opening and locking it. Not for ever: a file
        # system may number one file in two ways.
        if is_last_try or _is_at(lock, handle):
            break
        handle.close()
    with contextlib.suppress(OSError):  # for the message alone; a full disk is told where it matters
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
    return handle


def _is_at(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take(handle: IO[str]) -> None:
    """Lock an open file without waiting.

    Raises:
        BlockingIOError: another process holds it.
    """
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # some network file systems have no locks
        logger.warning(
            "warning: %s: this file system has no locks (%s); start no second run on the same output",
            handle.name,
            error.strerror,
        )


def _release(lock: Path, handle: IO[str], made: list[Path]) -> None:
    """Delete the lock file, then unlock it; the folders made for it go where nothing came of them."""
    _held.discard(lock)
    with contextlib.suppress(OSError):
        lock.unlink()
    with contextlib.suppress(OSError):
        handle.close()
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _tidy(path: Path, marker: str | None) -> None:
    """Delete the temporary files and folders of killed runs at an output that this process has claimed."""
    if not path.parent.is_dir():
        return
    for entry in path.parent.iterdir():
        match = TEMPORARY.fullmatch(entry.name)
        if match and entry.name in temporary_names(path, int(match[1])):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if marker is not None and (path / marker).is_file():
        for entry in path.rglob(".*.tmp*"):
            if TEMPORARY.fullmatch(entry.name) and entry.is_file():
                entry.unlink()
