import errno

import pytest

from experiment.errors import UserError, run_entry_point


def raise_(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("--seed: found\n  -1"), "error: --seed: found -1\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.h5"),
            "error: disk full while writing out/a.h5\n",
        ),
        (OSError(errno.ENOSPC, "No space left"), "error: disk full while writing the output\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "out"),
            "error: no permission to read or write out\n",
        ),
        (OSError(errno.EROFS, "Read-only", "out"), "error: no permission to read or write out\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(error, line, capsys):
    with pytest.raises(SystemExit) as exit_request:
        run_entry_point(raise_(error))
    assert exit_request.value.code == 2
    assert capsys.readouterr().err == line


def test_defects_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_entry_point(raise_(ZeroDivisionError()))
    with pytest.raises(OSError, match="strange"):
        run_entry_point(raise_(OSError(errno.EIO, "strange")))


def test_success_is_exit_code_0():
    with pytest.raises(SystemExit) as exit_request:
        run_entry_point(lambda: None)
    assert exit_request.value.code == 0
