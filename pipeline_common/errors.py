"""The one kind of error a user is meant to see, and how a script ends."""

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

INTERRUPTED, TERMINATED, READER_GONE = 130, 143, 141
"""Exit codes after SIGINT, SIGTERM and SIGPIPE, as a shell counts them: 128 and the signal's number."""

_REMEDIES = {
    errno.ENOSPC: "make room there or choose another output, then run again",
    errno.EDQUOT: "make room there or choose another output, then run again",
    errno.EFBIG: "files may not grow so large there; choose another output",
    errno.EROFS: "choose an output that can be written",
    errno.EACCES: "choose an output that you may write, or change its permissions",
    errno.EPERM: "choose an output that you may write, or change its permissions",
    errno.ENOTDIR: "a file stands where a folder should be; choose another output",
    errno.EEXIST: "a file stands where a folder should be; choose another output",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
}
"""What can be wrong with a place on a disk, and what a user does about it."""

_cleanups = contextlib.ExitStack()


class UserError(Exception):
    """A mistake in the input or the environment, told in one line.

    The message says where, what was expected, what was found, and what to do next.
    """


class _Terminated(KeyboardInterrupt):
    """SIGTERM, to be treated as Ctrl-C is by everything that tidies up on the way out."""


def cannot_write(path: Path, error: OSError) -> UserError | None:
    """The error to tell where a file system refused a write; None where the fault is another one."""
    remedy = _REMEDIES.get(error.errno or 0)
    return None if remedy is None else UserError(f"{path}: cannot be written ({error.strerror}); {remedy}")


def when_main_ends(action: Callable[[], object]) -> None:
    """Have something done when the script's `exit_codes` main ends, however it ends."""
    _cleanups.callback(action)


def on_interrupt(advice: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a ``main`` below `exit_codes` with what a user should know after Ctrl-C.

    Args:
        advice: what of an interrupted run is kept and how to go on.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def wrapped(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except KeyboardInterrupt as interrupt:
                interrupt.args = (advice,)
                raise

        return wrapped

    return decorate


def exit_codes(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a script's ``main`` so that it ends as the project promises.

    Args:
        main: takes the argument list (None: ``sys.argv``) and returns an exit code.

    Returns:
        A main that turns `UserError` and a full or unwritable disk into one line on stderr and exit code 1,
        Ctrl-C into one line and 130, SIGTERM into one line and 143, and an output pipe whose reader went away
        before the work was done into a quiet 141. Wrong usage stays argparse's exit code 2. Any other
        exception is a defect of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            with _cleanups, _sigterm_raises():
                code = main(argv)
        except UserError as error:
            return _tell(f"error: {' '.join(str(error).split())}", 1)
        except KeyboardInterrupt as interrupt:
            advice = (
                interrupt.args[0] if interrupt.args else "no file is half-written; run the same command again"
            )
            terminated = isinstance(interrupt, _Terminated)
            what = "terminated" if terminated else "interrupted"
            return _tell(f"{what}: {advice}", TERMINATED if terminated else INTERRUPTED)
        except BrokenPipeError:
            _drop_output()
            return READER_GONE
        except OSError as error:
            told = cannot_write(Path(error.filename or "the output"), error)
            if told is None:
                raise
            return _tell(f"error: {told}", 1)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()  # the work is done: what it printed has no reader, and that is no failure
        except OSError as error:
            return _tell(f"error: {cannot_write(Path('the output'), error) or error}", 1)
        return code

    return wrapped


def _tell(line: str, code: int) -> int:
    """Print a last line on stderr, and make sure that nothing else fails on the way out."""
    print(line, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return code


def _drop_output() -> None:
    """Point stdout at nothing, so that what Python flushes at its end fails no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that temporary files and locks go.

    Somebody else's handler stays. A process that was forked off meanwhile dies of the signal.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    own = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise _Terminated
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
