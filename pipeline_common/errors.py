"""The one kind of error a user is meant to see, and how a script ends."""

import functools
import os
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A mistake in the input or the environment, told in one line.

    The message says where, what was expected, what was found, and what to do next.
    """


def exit_codes(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a script's ``main`` so that it ends as the project promises.

    Args:
        main: takes the argument list (None: ``sys.argv``) and returns an exit code.

    Returns:
        A main that turns `UserError` into one line on stderr and exit code 1, Ctrl-C into exit code
        130, and a closed output pipe into a quiet exit. Wrong usage stays argparse's exit code 2.
        Any other exception is a defect of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            code = main(argv)
            sys.stdout.flush()
            return code
        except UserError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted: what was complete is kept; run the same command again", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader (head, less) went away: point stdout at nothing so that the exit stays quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return wrapped
