"""Errors that a user can mend, and how an entry script reports them."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2
"""Exit code of a command that refused its input (the same as for an unknown flag)."""


class UserError(Exception):
    """Input that a user can mend.

    The message is one line that names the flag or file, what was found and what was expected.
    """


def require_at_least(config: object, *names: str, least: int = 1) -> None:
    """Raise `UserError` for the first of the fields `names` of `config` below `least`."""
    for name in names:
        found = getattr(config, name)
        if not found >= least:
            raise UserError(f"--{name} {found}: must be at least {least}")


def run_entry_point(main: Callable[[], None]) -> NoReturn:
    """Run an entry script's `main` and exit; a `UserError` becomes one line and exit code 2.

    A full disk, a folder without write permission and the like are errors of the same kind, so
    they are reported in the same way. Everything else is a defect and keeps its traceback.
    """
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _exit_with_line(str(error))
    except BrokenPipeError:
        # What is still buffered has no reader either; the interpreter must not try to flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _exit_with_line(f"disk full while writing {error.filename or 'the output'}")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _exit_with_line(f"no permission to read or write {error.filename or 'the output'}")
        raise
    sys.exit(0)


def _exit_with_line(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USER_ERROR_EXIT_CODE)
